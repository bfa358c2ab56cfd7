//! Terminal sizes as clients send them: a sequence of JSON objects, `{"Width":80,"Height":24}`.

use crate::model::TerminalSize;

/// Longest accepted object; longer ones are no size.
const MAX_BYTES: usize = 1 << 10;

/// Cuts a byte stream into sizes.
#[derive(Debug, Default)]
pub(super) struct Sizes(Vec<u8>);

impl Sizes {
    /// Takes more bytes and returns the last complete size in them, if any: only the last matters.
    pub(super) fn feed(&mut self, bytes: &[u8]) -> Option<TerminalSize> {
        let mut last = None;
        for byte in bytes {
            if self.0.is_empty() && byte.is_ascii_whitespace() {
                continue;
            }
            if self.0.len() < MAX_BYTES {
                self.0.push(*byte);
            }
            // There are no braces within.
            if *byte == b'}' {
                last = parse(&self.0).or(last);
                self.0.clear();
            }
        }
        last
    }
}

/// None for anything but a non-empty size.
fn parse(text: &[u8]) -> Option<TerminalSize> {
    let object: serde_json::Map<String, serde_json::Value> = serde_json::from_slice(text).ok()?;
    let get = |name: &str| {
        let (_, value) = object.iter().find(|(key, _)| key.eq_ignore_ascii_case(name))?;
        value.as_u64().and_then(|value| u16::try_from(value).ok()).filter(|value| *value > 0)
    };
    Some(TerminalSize { columns: get("width")?, rows: get("height")? })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn size(columns: u16, rows: u16) -> Option<TerminalSize> {
        Some(TerminalSize { columns, rows })
    }

    #[test]
    fn sizes_are_found_however_they_are_cut() {
        let mut sizes = Sizes::default();
        assert_eq!(sizes.feed(b"{\"Width\":80,\"Hei"), None);
        assert_eq!(sizes.feed(b"ght\":24}\n{\"width\":100"), size(80, 24));
        assert_eq!(sizes.feed(b",\"height\":50}\n{\"Width\":1,\"Height\":2}\n"), size(1, 2));
    }

    #[test]
    fn what_is_no_size_is_skipped() {
        let mut sizes = Sizes::default();
        for wrong in
            ["{\"Width\":0,\"Height\":24}", "{}", "}", "x}", "{\"Width\":70000,\"Height\":1}", "[1]}"]
        {
            assert_eq!(sizes.feed(wrong.as_bytes()), None, "{wrong}");
        }
        assert_eq!(sizes.feed(&vec![b'x'; 1 << 20]), None);
        assert!(sizes.0.len() <= MAX_BYTES);
        assert_eq!(sizes.feed(b"}{\"Width\":3,\"Height\":4}"), size(3, 4));
    }
}
