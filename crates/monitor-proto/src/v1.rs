//! Protocol 1, as far as a daemon needs it for monitors that an older daemon launched: a pod keeps its monitor for as long
//! as it lives. Replies and events need nothing here: the types of today read the old names, too.

use serde::Serialize;

use crate::Run;

/// What a monitor of this protocol says in its greeting.
pub const VERSION: u32 = 1;

/// Requests that protocol 2 names or writes otherwise.
#[derive(Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Request<'a> {
    /// [`crate::Request::Run`].
    Create(Create<'a>),
}

/// A container to run.
#[derive(Debug, Serialize)]
pub struct Create<'a> {
    /// Everything else.
    #[serde(flatten)]
    run: &'a Run,
    /// Not only create it.
    start: bool,
}

/// Whether these are the words with which a monitor of this protocol refuses the launch by a later daemon.
#[must_use]
pub fn refuses_launch(words: &str) -> bool {
    words.starts_with("protocol ") && words.ends_with(&format!(" asked, {VERSION} spoken"))
}

impl<'a> Request<'a> {
    /// Has the container created and started.
    #[must_use]
    pub fn run(run: &'a Run) -> Self {
        Self::Create(Create { run, start: true })
    }
}
