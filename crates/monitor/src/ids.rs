//! Ids that become file names.

/// Longest id; ours are 64 characters.
const MAX_LENGTH: usize = 128;

/// Whether `id` is safe in a file name: letters, digits, `_`, `-`, `.`, and no leading dot.
pub(crate) fn is_valid(id: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-' | b'.');
    !id.is_empty() && id.len() <= MAX_LENGTH && !id.starts_with('.') && id.bytes().all(plain)
}

#[cfg(test)]
mod tests {
    use super::is_valid;

    #[test]
    fn only_plain_names() {
        assert!(is_valid("0a-b_c.d"));
        for bad in ["", ".", "..", ".x", "a/b", "a b", "ä", &"x".repeat(129)] {
            assert!(!is_valid(bad), "{bad}");
        }
    }
}
