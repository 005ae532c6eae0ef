//! What documents promise: commands and links.

/// The lines of the first fenced block of a language.
#[must_use]
pub fn first_block<'a>(text: &'a str, language: &str) -> Option<Vec<&'a str>> {
    let mut lines = text.lines();
    lines.find(|line| line.trim_end() == format!("```{language}"))?;
    let block: Vec<&str> = lines.take_while(|line| line.trim_end() != "```").collect();
    Some(block)
}

/// The targets of links to files of the repository, without their anchors, with line numbers from 1.
///
/// Links in fenced blocks and in inline code do not count.
#[must_use]
pub fn relative_links(text: &str) -> Vec<(usize, &str)> {
    let mut links = Vec::new();
    let mut fenced = false;
    for (i, line) in text.lines().enumerate() {
        if line.trim_start().starts_with("```") {
            fenced = !fenced;
        } else if !fenced {
            let targets = line
                .match_indices("](")
                .filter(|(at, _)| line[..*at].matches('`').count() % 2 == 0)
                .filter_map(|(at, mark)| line[at + mark.len()..].split(')').next());
            for target in targets {
                let elsewhere = target.contains("://") || target.starts_with("mailto:");
                let path = target.split('#').next().unwrap_or_default();
                if !elsewhere && !path.is_empty() {
                    links.push((i + 1, path));
                }
            }
        }
    }
    links
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tidy_markdown_first_block_is_of_the_language() {
        let text = "a\n```toml\nx = 1\n```\n```sh\none\ntwo\n```\n```sh\nthree\n```\n";
        assert_eq!(first_block(text, "sh"), Some(vec!["one", "two"]));
        assert_eq!(first_block(text, "rust"), None);
    }

    #[test]
    fn tidy_markdown_links_to_files_are_found() {
        let text = "[a](b.md) [c](https://d.e/) [f](#g)\n```\n[h](i)\n```\n`[j](k)` and [l](m/n.md#o)\n";
        assert_eq!(relative_links(text), [(1, "b.md"), (5, "m/n.md")]);
    }
}
