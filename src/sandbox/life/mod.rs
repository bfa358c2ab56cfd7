//! The lives of pods: who may ask what of them, and when. One task per pod orders its acts; nothing here does I/O itself.

pub(super) mod announce;
pub(super) mod conditions;
pub(super) mod index;
pub(super) mod mailbox;
pub(super) mod manager;
pub(super) mod pod;
pub(super) mod recover;
pub(super) mod shared;
