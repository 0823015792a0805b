//! Names and their numbers. Accounts and clients are known by number everywhere, in live jobs and queues too: a name keeps its number from
//! one configuration to the next, and one that is gone keeps its own until the next start.

/// All names by number, those that were `known` first; and the number of each of `names`.
pub(crate) fn number<'a>(known: &[String], names: impl IntoIterator<Item = &'a str>) -> (Vec<String>, Vec<usize>) {
    let mut all = known.to_vec();
    let numbers = names.into_iter().map(|name| {
        all.iter().position(|known| known == name).unwrap_or_else(|| {
            all.push(name.to_owned());
            all.len() - 1
        })
    });
    let numbers = numbers.collect();
    (all, numbers)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_keeps_its_number_also_while_it_is_away() {
        let (all, numbers) = number(&[], ["a", "b"]);
        assert_eq!((all.len(), numbers), (2, vec![0, 1]));
        let (all, numbers) = number(&all, ["c", "b"]);
        assert_eq!(numbers, [2, 1]);
        let (all, numbers) = number(&all, ["a"]);
        assert_eq!((all.as_slice(), numbers), (["a", "b", "c"].map(str::to_owned).as_slice(), vec![0]));
    }
}
