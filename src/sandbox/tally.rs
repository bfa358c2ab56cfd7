//! What pods, or containers, have in labels and annotations together. A list tells all of them in one message: one pod too
//! many, and the kubelet can list none. Pure.

use super::error::SandboxError;
use std::collections::BTreeMap;

/// What everybody may have, whatever the others have: with it, some thousand pods fit the rest of a message.
const OWN_BYTES: usize = 4 << 10;
/// What an entry of a map takes beside its text.
const ENTRY_BYTES: usize = 8;

/// The size of one object's labels and annotations in a list.
pub(super) fn bytes(labels: &BTreeMap<String, String>, annotations: &BTreeMap<String, String>) -> usize {
    labels.iter().chain(annotations).map(|(key, value)| key.len() + value.len() + ENTRY_BYTES).sum()
}

/// Whether one more object of `kind` can be listed beside the others in a message of `limit` bytes, of which three
/// quarters are for what is more than everybody's own share.
///
/// # Errors
/// When it cannot.
pub(super) fn check(
    kind: &'static str,
    new: usize,
    others: impl Iterator<Item = usize>,
    limit: usize,
) -> Result<(), SandboxError> {
    if new <= OWN_BYTES {
        return Ok(());
    }
    let most = limit / 4 * 3;
    let all = others.filter(|bytes| *bytes > OWN_BYTES).fold(new, usize::saturating_add);
    if all > most { Err(SandboxError::TooLongToList { kind, all, most }) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_no_list_could_tell_is_refused_and_small_ones_always_fit() {
        let limit = 16 << 20;
        let quarter_mib = |count| std::iter::repeat_n(256 << 10, count);
        assert!(check("pods", 256 << 10, quarter_mib(47), limit).is_ok());
        let refused = check("pods", 256 << 10, quarter_mib(48), limit).unwrap_err().to_string();
        assert!(refused.contains("pods") && refused.contains("12582912"), "{refused}");
        assert!(check("pods", OWN_BYTES, quarter_mib(1000), limit).is_ok());
        // A thousand of these are in the last quarter.
        assert!(check("pods", 256 << 10, quarter_mib(47).chain([OWN_BYTES; 1000]), limit).is_ok());
    }
}
