//! Which of two versions is the newer one, as the Boot Loader Specification says (UAPI.10, version format).
//!
//! ```text
//! 6.1.0~rc1 < 6.1.0 < 6.1.0-9 < 6.1.0-10 < 6.1.0^1 < 6.1.0.1       numbers by value, letters by their codes
//! ```

use std::cmp::Ordering;

/// Compares `a` with `b`.
pub(super) fn compare(a: &str, b: &str) -> Ordering {
    let (mut a, mut b) = (a.as_bytes(), b.as_bytes());
    loop {
        a = meaningful(a);
        b = meaningful(b);
        if let Some(order) = mark(&mut a, &mut b, b'~') {
            return order;
        }
        if a.is_empty() || b.is_empty() {
            return a.len().min(1).cmp(&b.len().min(1));
        }
        for character in *b"-^." {
            if let Some(order) = mark(&mut a, &mut b, character) {
                return order;
            }
        }
        let order = if leads(a, u8::is_ascii_digit) || leads(b, u8::is_ascii_digit) {
            let (a, b) = (
                taken(&mut a, u8::is_ascii_digit),
                taken(&mut b, u8::is_ascii_digit),
            );
            let numbers = (significant(a), significant(b));
            let by_value = numbers
                .0
                .len()
                .cmp(&numbers.1.len())
                .then(numbers.0.cmp(numbers.1));
            a.len().min(1).cmp(&b.len().min(1)).then(by_value)
        } else {
            let is_letter = u8::is_ascii_alphabetic;
            taken(&mut a, is_letter).cmp(taken(&mut b, is_letter))
        };
        if order.is_ne() {
            return order;
        }
    }
}

/// Goes over `character` where both begin with it; where one does, that one is the older.
fn mark(a: &mut &[u8], b: &mut &[u8], character: u8) -> Option<Ordering> {
    match (a.split_first(), b.split_first()) {
        (Some((first, rest_a)), Some((second, rest_b)))
            if *first == character && *second == character =>
        {
            (*a, *b) = (rest_a, rest_b);
            None
        }
        (Some((first, _)), _) if *first == character => Some(Ordering::Less),
        (_, Some((second, _))) if *second == character => Some(Ordering::Greater),
        _ => None,
    }
}

/// `text` from its first character on that counts.
fn meaningful(text: &[u8]) -> &[u8] {
    let counts = |byte: &u8| byte.is_ascii_alphanumeric() || b"~-^.".contains(byte);
    let start = text.iter().position(counts).unwrap_or(text.len());
    &text[start..]
}

fn leads(text: &[u8], is: fn(&u8) -> bool) -> bool {
    text.first().is_some_and(is)
}

/// Takes what `is` so from the front of `text`.
fn taken<'a>(text: &mut &'a [u8], is: fn(&u8) -> bool) -> &'a [u8] {
    let end = text.iter().position(|byte| !is(byte)).unwrap_or(text.len());
    let (front, rest) = text.split_at(end);
    *text = rest;
    front
}

/// Digits without zeros in front.
fn significant(digits: &[u8]) -> &[u8] {
    let start = digits.iter().position(|digit| *digit != b'0');
    &digits[start.unwrap_or(digits.len())..]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_ordered_as_the_specification_says() {
        // What begins with a tilde is older than nothing at all, and numbers are newer than letters.
        let ordered = [
            "~1",
            "",
            "a",
            "b",
            "0",
            "6.1.0~rc1",
            "6.1.0",
            "6.1.0-9-amd64",
            "6.1.0-10-amd64",
            "6.1.0-10-cloud-amd64",
            "6.1.0^20240101",
            "6.1.0.1",
            "6.5.6-300.fc39.x86_64",
            "6.5.10-100.fc39.x86_64",
        ];
        for (index, a) in ordered.iter().enumerate() {
            for (other, b) in ordered.iter().enumerate() {
                assert_eq!(compare(a, b), index.cmp(&other), "{a:?} {b:?}");
            }
        }
        assert_eq!(compare("1.007", "1.7"), Ordering::Equal);
        assert_eq!(compare("1_2", "12"), Ordering::Less);
    }
}
