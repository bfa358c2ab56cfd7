//! Mounts, by the new mount API where it is the safer one. Never remembers a mount.
