//! What a runtime says when the kernel has no room for a container's session keyring. Keys are counted for a user, and
//! root in a container without a user namespace is the node's root: one such container can take all of root's room, for
//! good. Then a container is started without a keyring of its own, with the daemon's, which is empty and stays so.

/// The option of runc, crun and youki.
pub(super) const NO_NEW_KEYRING: &str = "--no-new-keyring";

/// Whether that is what a runtime's words mean: of runc `unable to join session keyring: unable to create session key: disk
/// quota exceeded`, of crun ``create keyring `x`: Disk quota exceeded``. Others' words are like these. Who makes a runtime
/// say so for another reason has it started once more, with no other effect.
#[must_use]
pub fn lacks_room_for_keyring(message: &str) -> bool {
    let message = message.to_ascii_lowercase();
    (message.contains("keyring") || message.contains("session key"))
        && ["quota exceeded", "edquot", "os error 122"].iter().any(|words| message.contains(words))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runtimes_that_lack_room_for_a_keyring_are_understood() {
        for words in [
            "runc create failed: unable to start container process: error during container init: unable to join session \
             keyring: unable to create session key: disk quota exceeded",
            "create keyring `5f1c`: Disk quota exceeded",
            "failed to create session keyring: EDQUOT: Quota exceeded",
        ] {
            assert!(lacks_room_for_keyring(words), "{words}");
        }
        for words in ["write /etc/hosts: disk quota exceeded", "exec: \"keyring\": not found", ""] {
            assert!(!lacks_room_for_keyring(words), "{words}");
        }
    }
}
