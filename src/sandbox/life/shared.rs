//! What the tasks of all pods share.

use super::announce::Announcer;
use super::index::Index;
use crate::sandbox::acts::node::Node;
use std::sync::Arc;

/// Handles; cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct Shared {
    /// The mechanisms.
    pub(super) node: Arc<Node>,
    /// Where the pods are found.
    pub(super) index: Index,
    /// The subscribers of container events.
    pub(super) announcer: Arc<Announcer>,
}
