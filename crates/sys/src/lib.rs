//! Every raw system call of podwright that a safe crate does not offer, behind safe functions.
//!
//! Owns: all `unsafe` of the workspace. Never owns policy: no paths of ours, no retries, no state. All errors are the
//! kernel's, as [`std::io::Error`]; the caller adds the operation and its object.

pub mod apart;
pub mod clock;
pub mod confine;
pub mod fdpass;
pub mod keyring;
pub mod landlock;
pub mod lend;
pub mod memory;
pub mod names;
pub mod namespace;
pub mod path;
pub mod pidfd;
pub mod proc;
pub mod process;
pub mod quota;
pub mod rights;
pub mod seccomp;
pub mod socket;
pub mod tty;
pub mod userns;
