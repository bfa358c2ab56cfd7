//! The names and ids of pods and containers, to the handles of their tasks. Holds no state; sections are short and never
//! held over an await.

use super::mailbox::PodHandle;
use crate::model::{ContainerId, PodName, SandboxId, SandboxSpec};
use crate::sandbox::words::error::SandboxError;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Names and ids to handles. Sections are short and never held over an await.
#[derive(Debug, Clone, Default)]
pub(super) struct Index(Arc<Mutex<Tables>>);

#[derive(Debug, Default)]
pub(super) struct Tables {
    pub(super) pods: HashMap<SandboxId, PodHandle>,
    pub(super) names: HashMap<PodName, SandboxId>,
    containers: HashMap<ContainerId, SandboxId>,
}

impl Index {
    pub(super) fn lock(&self) -> MutexGuard<'_, Tables> {
        // Every section leaves the tables whole.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn add_pod(&self, spec: &SandboxSpec, handle: PodHandle) {
        let mut tables = self.lock();
        tables.names.insert(spec.name.clone(), spec.id.clone());
        tables.pods.insert(spec.id.clone(), handle);
    }

    pub(super) fn remove_pod(&self, spec: &SandboxSpec) {
        let mut tables = self.lock();
        tables.pods.remove(&spec.id);
        tables.containers.retain(|_, pod| *pod != spec.id);
        if tables.names.get(&spec.name) == Some(&spec.id) {
            tables.names.remove(&spec.name);
        }
    }

    pub(super) fn add_container(&self, id: &ContainerId, pod: &SandboxId) {
        self.lock().containers.insert(id.clone(), pod.clone());
    }

    pub(super) fn remove_container(&self, id: &ContainerId) {
        self.lock().containers.remove(id);
    }

    /// The pod with this id or unique prefix.
    pub(super) fn find_pod(&self, id: &str) -> Result<PodHandle, SandboxError> {
        let tables = self.lock();
        let id = by_prefix("pod sandbox", &tables.pods, id)?
            .ok_or_else(|| SandboxError::SandboxNotFound(shown(id)))?;
        tables.pods.get(&id).cloned().ok_or_else(|| SandboxError::SandboxNotFound(id.to_string()))
    }

    /// The pod of the container with this id or unique prefix, and the container's whole id.
    pub(super) fn find_container(&self, id: &str) -> Result<(PodHandle, ContainerId), SandboxError> {
        let tables = self.lock();
        let not_found = || SandboxError::ContainerNotFound(shown(id));
        let full = by_prefix("container", &tables.containers, id)?.ok_or_else(not_found)?;
        let pod = tables.containers.get(&full).ok_or_else(not_found)?;
        Ok((tables.pods.get(pod).cloned().ok_or_else(not_found)?, full))
    }
}

/// An id from a request for an error's text: it may be megabytes.
fn shown(id: &str) -> String {
    crate::model::plain::ends(id, MAX_SHOWN).into_owned()
}

/// Bytes of an id that are shown; ours have 64.
const MAX_SHOWN: usize = 128;

/// Finds the one id that `prefix` is or begins. An empty prefix fits nothing.
fn by_prefix<K, V>(kind: &'static str, map: &HashMap<K, V>, prefix: &str) -> Result<Option<K>, SandboxError>
where
    K: std::borrow::Borrow<str> + Clone + Eq + std::hash::Hash,
{
    if prefix.is_empty() {
        return Ok(None);
    }
    if let Some((id, _)) = map.get_key_value(prefix) {
        return Ok(Some(id.clone()));
    }
    let mut fitting = map.keys().filter(|id| (*id).borrow().starts_with(prefix));
    let first = fitting.next().cloned();
    match fitting.count() {
        0 => Ok(first),
        more => Err(SandboxError::AmbiguousId { kind, prefix: prefix.to_owned(), count: more + 1 }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ids(names: &[&str]) -> HashMap<SandboxId, ()> {
        names.iter().map(|n| (SandboxId::parse(&format!("{n:0<64}")).unwrap(), ())).collect()
    }

    #[test]
    fn a_prefix_finds_one_or_says_why_not() {
        let map = ids(&["abc1", "abc2", "def"]);
        assert_eq!(by_prefix("x", &map, "").unwrap(), None);
        assert_eq!(by_prefix("x", &map, "9").unwrap(), None);
        assert!(by_prefix("x", &map, "d").unwrap().is_some());
        assert!(matches!(by_prefix("x", &map, "abc"), Err(SandboxError::AmbiguousId { count: 2, .. })));
        let full = format!("{:0<64}", "abc1");
        assert_eq!(by_prefix("x", &map, &full).unwrap().unwrap().as_str(), full);
    }
}
