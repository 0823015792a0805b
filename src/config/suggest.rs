//! "Did you mean": the nearest of the words that would have been right.

/// Words longer than this are not compared; nobody mistypes that much.
const LONGEST: usize = 64;

/// The candidate nearest to `word`, if it is near enough to be what was meant.
pub(crate) fn nearest<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    if word.is_empty() || word.len() > LONGEST {
        return None;
    }
    let word = plain(word);
    candidates
        .into_iter()
        .filter(|candidate| candidate.len() <= LONGEST)
        .map(|candidate| (candidate, plain(candidate)))
        .map(|(candidate, letters)| (distance(&word, &letters), is_near(&word, &letters), candidate))
        .filter(|(_, is_near, _)| *is_near)
        .min_by_key(|(distance, ..)| *distance)
        .map(|(.., candidate)| candidate)
}

/// The help line for [`nearest`]: the near word, else all of them when they are few.
pub(super) fn help<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str> + Clone) -> Option<String> {
    if let Some(near) = nearest(word, candidates.clone()) {
        return Some(format!("did you mean `{near}`?"));
    }
    let all: Vec<String> = candidates.into_iter().take(9).map(|word| format!("`{word}`")).collect();
    match all.as_slice() {
        [one] => Some(format!("there is only {one}")),
        [most @ .., last] if all.len() <= 8 => Some(format!("known here: {} and {last}", most.join(", "))),
        _ => None,
    }
}

/// One edit in three letters, or the right letters in the wrong order.
fn is_near(word: &[char], candidate: &[char]) -> bool {
    let sorted = |letters: &[char]| {
        let mut letters = letters.to_vec();
        letters.sort_unstable();
        letters
    };
    distance(word, candidate) <= (word.len().max(candidate.len()) / 3).max(1) || sorted(word) == sorted(candidate)
}

/// Case and the choice between `-` and `_` are not what people get wrong on purpose.
fn plain(word: &str) -> Vec<char> {
    word.chars().map(|c| if c == '-' { '_' } else { c.to_ascii_lowercase() }).collect()
}

/// Levenshtein's distance, one row at a time.
fn distance(from: &[char], to: &[char]) -> usize {
    let mut row: Vec<usize> = (0..=to.len()).collect();
    for (i, a) in from.iter().enumerate() {
        let mut diagonal = i;
        let mut left = i + 1;
        for (b, above) in to.iter().zip(row.iter_mut().skip(1)) {
            let cell = (diagonal + usize::from(a != b)).min(left + 1).min(*above + 1);
            diagonal = std::mem::replace(above, cell);
            left = cell;
        }
        if let Some(first) = row.first_mut() {
            *first = i + 1;
        }
    }
    row.last().copied().unwrap_or(from.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slip_finds_its_word() {
        let words = ["listen", "threads", "max_body"];
        assert_eq!(nearest("listn", words), Some("listen"));
        assert_eq!(nearest("Max-Body", words), Some("max_body"));
        assert_eq!(nearest("lisnet", words), Some("listen"));
        assert_eq!(nearest("colour", words), None);
    }

    #[test]
    fn distance_counts_edits() {
        let count = |a: &str, b: &str| distance(&plain(a), &plain(b));
        assert_eq!(count("kitten", "sitting"), 3);
        assert_eq!(count("", "abc"), 3);
        assert_eq!(count("abc", ""), 3);
        assert_eq!(count("same", "same"), 0);
    }
}
