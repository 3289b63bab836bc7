//! Numbers as people read them.

/// A whole number with thousands separators: `1,234,567`.
pub fn thousands<N: Into<i128>>(number: N) -> String {
    let number = number.into();
    let digits = number.unsigned_abs().to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3 + 1);
    if number < 0 {
        text.push('-');
    }
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thousands_are_separated() {
        let shown = [0, 999, 1_000, 123_456, 1_234_567, -1_000, -999].map(thousands::<i64>);
        assert_eq!(shown, ["0", "999", "1,000", "123,456", "1,234,567", "-1,000", "-999"]);
        assert_eq!(thousands(i64::MIN), "-9,223,372,036,854,775,808");
        assert_eq!(thousands(u64::MAX), "18,446,744,073,709,551,615");
    }
}
