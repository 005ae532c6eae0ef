//! A table whose entries are named by small numbers. A number that became free is given to the next entry, last freed first:
//! which one comes next is part of a resource's state, because the numbers are the tags of its disk commands.

use std::ops::{Index, IndexMut};

use rkyv::{Archive, Deserialize, Serialize};

#[derive(Debug, Clone, Archive, Serialize, Deserialize)]
enum Entry<T> {
    /// Not in use; the one that was free before it.
    Free(Option<usize>),
    Used(T),
}

/// See the module.
#[derive(Debug, Clone, Archive, Serialize, Deserialize)]
pub(crate) struct Table<T> {
    entries: Vec<Entry<T>>,
    free: Option<usize>,
    len: usize,
}

impl<T> Table<T> {
    pub(crate) const fn new() -> Self {
        Table { entries: Vec::new(), free: None, len: 0 }
    }

    /// Puts an entry in; gives its number.
    pub(crate) fn insert(&mut self, value: T) -> usize {
        self.len += 1;
        let Some(index) = self.free else {
            self.entries.push(Entry::Used(value));
            return self.entries.len() - 1;
        };
        match std::mem::replace(&mut self.entries[index], Entry::Used(value)) {
            Entry::Free(next) => self.free = next,
            Entry::Used(_) => panic!("entry {index} is free"),
        }
        index
    }

    /// Takes an entry out.
    ///
    /// # Panics
    /// If there is none of this number.
    pub(crate) fn remove(&mut self, index: usize) -> T {
        match self.entries.get_mut(index).map(|entry| std::mem::replace(entry, Entry::Free(self.free))) {
            Some(Entry::Used(value)) => {
                self.free = Some(index);
                self.len -= 1;
                value
            }
            _ => panic!("no entry {index}"),
        }
    }

    pub(crate) fn get(&self, index: usize) -> Option<&T> {
        match self.entries.get(index) {
            Some(Entry::Used(value)) => Some(value),
            _ => None,
        }
    }

    pub(crate) fn contains(&self, index: usize) -> bool {
        self.get(index).is_some()
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// All entries with their numbers, ascending.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (usize, &T)> {
        self.entries.iter().enumerate().filter_map(|(i, entry)| match entry {
            Entry::Used(value) => Some((i, value)),
            Entry::Free(_) => None,
        })
    }

    /// All entries with their numbers, ascending.
    pub(crate) fn iter_mut(&mut self) -> impl Iterator<Item = (usize, &mut T)> {
        self.entries.iter_mut().enumerate().filter_map(|(i, entry)| match entry {
            Entry::Used(value) => Some((i, value)),
            Entry::Free(_) => None,
        })
    }
}

impl<T> Index<usize> for Table<T> {
    type Output = T;

    fn index(&self, index: usize) -> &T {
        self.get(index).unwrap_or_else(|| panic!("no entry {index}"))
    }
}

impl<T> IndexMut<usize> for Table<T> {
    fn index_mut(&mut self, index: usize) -> &mut T {
        match self.entries.get_mut(index) {
            Some(Entry::Used(value)) => value,
            _ => panic!("no entry {index}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::Table;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]

        #[test]
        fn table_is_a_map_that_uses_free_numbers_again(ops in prop::collection::vec((any::<bool>(), any::<usize>()), 1..200)) {
            let (mut table, mut map, mut freed) = (Table::new(), BTreeMap::new(), Vec::new());
            for (nr, (insert, pick)) in ops.into_iter().enumerate() {
                if insert || map.is_empty() {
                    let expected = freed.pop().unwrap_or(map.len());
                    prop_assert_eq!(table.insert(nr), expected);
                    map.insert(expected, nr);
                } else {
                    let index = *map.keys().nth(pick % map.len()).expect("not empty");
                    prop_assert_eq!(Some(table.remove(index)), map.remove(&index));
                    prop_assert!(!table.contains(index));
                    freed.push(index);
                }
                prop_assert_eq!(table.len(), map.len());
                prop_assert!(table.iter().eq(map.iter().map(|(i, v)| (*i, v))));
            }
        }
    }
}
