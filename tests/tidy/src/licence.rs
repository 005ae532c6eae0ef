//! Licence expressions (SPDX) and which of them a dependency may have.

use thiserror::Error;

/// Licences of dependencies that need no discussion: permissive, no copyleft. `deny.toml` has the same list.
pub const ALLOWED: [&str; 9] =
    ["0BSD", "Apache-2.0", "BSD-2-Clause", "BSD-3-Clause", "CC0-1.0", "ISC", "MIT", "Unicode-3.0", "Zlib"];

/// An expression that cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("cannot read the licence expression {0:?}")]
pub struct ExpressionError(String);

/// True if the expression can be met with the allowed licences alone: of an OR one side is enough.
///
/// # Errors
/// It is no expression.
pub fn is_allowed(expression: &str) -> Result<bool, ExpressionError> {
    // The old way to write OR.
    let spaced = expression.replace('/', " OR ").replace('(', " ( ").replace(')', " ) ");
    let tokens: Vec<&str> = spaced.split_whitespace().collect();
    let mut parser = Parser { tokens, at: 0 };
    match parser.or() {
        Some(allowed) if parser.at == parser.tokens.len() => Ok(allowed),
        _ => Err(ExpressionError(expression.to_owned())),
    }
}

struct Parser<'a> {
    tokens: Vec<&'a str>,
    at: usize,
}

impl<'a> Parser<'a> {
    fn take(&mut self, token: &str) -> bool {
        let is = self.tokens.get(self.at) == Some(&token);
        self.at += usize::from(is);
        is
    }

    fn next(&mut self) -> Option<&'a str> {
        let token = self.tokens.get(self.at).copied();
        self.at += 1;
        token.filter(|t| !matches!(*t, "AND" | "OR" | "WITH" | "(" | ")"))
    }

    fn or(&mut self) -> Option<bool> {
        let mut allowed = self.and()?;
        while self.take("OR") {
            allowed |= self.and()?;
        }
        Some(allowed)
    }

    fn and(&mut self) -> Option<bool> {
        let mut allowed = self.one()?;
        while self.take("AND") {
            allowed &= self.one()?;
        }
        Some(allowed)
    }

    fn one(&mut self) -> Option<bool> {
        if self.take("(") {
            let allowed = self.or()?;
            return self.take(")").then_some(allowed);
        }
        let licence = self.next()?;
        // An exception only adds permissions.
        if self.take("WITH") {
            self.next()?;
        }
        Some(ALLOWED.contains(&licence))
    }
}

/// The licences that the text of `deny.toml` allows, in order.
#[must_use]
pub fn allowed_by_deny_toml(text: &str) -> Option<Vec<&str>> {
    let section = text.split_once("\n[licenses]")?.1;
    let section = section.split("\n[").next().unwrap_or_default();
    let list = section.split_once("\nallow = [")?.1.split_once(']')?.0;
    Some(list.split('"').skip(1).step_by(2).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tidy_licence_expressions_are_evaluated() {
        for (expression, allowed) in [
            ("MIT", true),
            ("GPL-2.0-only", false),
            ("MIT OR GPL-2.0-only", true),
            ("MIT AND GPL-2.0-only", false),
            ("(MIT OR Apache-2.0) AND Unicode-3.0", true),
            ("(MIT OR Apache-2.0) AND OpenSSL", false),
            ("Unlicense/MIT", true),
            ("MPL-2.0", false),
            ("Apache-2.0 WITH LLVM-exception", true),
            ("GPL-3.0 WITH Classpath-exception-2.0 OR LGPL-2.1", false),
            // AND binds closer than OR.
            ("MIT OR GPL-2.0-only AND GPL-3.0-only", true),
        ] {
            assert_eq!(is_allowed(expression), Ok(allowed), "{expression}");
        }
    }

    #[test]
    fn tidy_licence_expressions_that_are_none_are_errors() {
        for expression in ["", "MIT OR", "(MIT", "MIT)", "MIT Apache-2.0", "AND", "MIT WITH"] {
            assert!(is_allowed(expression).is_err(), "{expression}");
        }
    }

    #[test]
    fn tidy_licence_list_of_deny_toml_is_found() {
        let text =
            "# x\n[bans]\nallow = [\"a\"]\n[licenses]\nversion = 2\nallow = [\n    \"MIT\",\n    \"ISC\",\n]\n[x]\n";
        assert_eq!(allowed_by_deny_toml(text), Some(vec!["MIT", "ISC"]));
        assert_eq!(allowed_by_deny_toml("[bans]\n"), None);
    }
}
