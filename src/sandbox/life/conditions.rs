//! Whether pods can run here, as conditions with names that kubelets know. Decides nothing.

use crate::host::network::Readiness;
use crate::sandbox::acts::node::Node;

/// One condition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Condition {
    /// Its subject.
    pub name: &'static str,
    /// Whether it holds.
    pub ok: bool,
    /// A machine-readable reason; empty if it holds.
    pub reason: &'static str,
    /// A readable message; empty if it holds.
    pub message: String,
}

/// All of them.
#[must_use]
pub fn conditions(node: &Node) -> [Condition; 2] {
    let holds = |name| Condition { name, ok: true, reason: "", message: String::new() };
    let network = match node.network.readiness() {
        Readiness::Ready { .. } => holds("NetworkReady"),
        Readiness::NotReady { reason } => Condition {
            name: "NetworkReady",
            ok: false,
            reason: "NetworkPluginNotReady",
            message: format!("Network plugin returns error: {reason}"),
        },
    };
    // The daemon does not serve before its runtimes work.
    [holds("RuntimeReady"), network]
}
