//! Attachments of vanished sandboxes: detaches them, and has plugins collect what they kept beside (GC).

use super::chain::Pod;
use super::list::NetworkList;
use super::plugin::Verb;
use super::version::Version;
use super::{Inner, live_netns, lock};
use crate::model::SandboxId;
use serde_json::{Value, json};
use std::collections::HashSet;
use std::time::Duration;

/// Interval at which collection checks that no ADD or DEL runs. It never queues for the lock: a hung plugin would then
/// block every new pod.
const GATE_PAUSE: Duration = Duration::from_millis(250);
/// Checks before it leaves the rest to the next collection.
const GATE_TRIES: u32 = 120;

impl Inner {
    pub(super) async fn collect(&self, valid: &[SandboxId]) {
        let valid: HashSet<&str> = valid.iter().map(SandboxId::as_str).collect();
        for entry in self.cache.all() {
            let id = entry.container_id.as_str();
            if !entry.is_ours() || valid.contains(id) || lock(&self.attached).contains(id) {
                continue;
            }
            let _shared = self.gate.read().await;
            let current = self.current().ok();
            let current = current.as_deref().unwrap_or_default();
            let (netns, name) = (live_netns(Some(entry.netns())), entry.pod());
            let pod = Pod { netns: &netns, name: &name };
            match self.leave(current, &entry, &pod, &mut Duration::default()).await {
                // Log: What an earlier pod had left was released.
                Ok(()) => tracing::info!(
                    pod = name,
                    sandbox = id,
                    interface = entry.interface(),
                    "detached a sandbox that no longer exists"
                ),
                Err(error) => {
                    // Log: DEL for the leftovers of an earlier pod failed, mostly because its network is no longer
                    // configured.
                    // Do: Nothing: the next start tries again.
                    tracing::warn!(%error, sandbox = id, "detach of a sandbox that no longer exists")
                }
            }
        }
        let Ok(networks) = self.current() else { return };
        let collects = |list: &NetworkList| list.version >= Version::STATUS_AND_GC && !list.disable_gc;
        let asked: Vec<_> = networks.iter().filter(|network| collects(&network.list)).collect();
        if asked.is_empty() {
            return;
        }
        let Some(_alone) = self.alone().await else {
            // Log: The node is busy.
            // Do: Nothing.
            tracing::warn!("no moment without ADD or DEL; CNI GC is left to the next collection");
            return;
        };
        for network in asked {
            let list = &*network.list;
            // Files may share a network: each gets the attachments of all of them.
            let shared = networks.iter().filter(|other| other.list.name == list.name);
            let interfaces: Vec<_> = shared.map(|other| other.interface.as_str()).collect();
            let attachments = self.valid_attachments(list, &interfaces, &valid).to_string();
            // libcni sends the list under both names; plugins read the older one first.
            let extra =
                [("cni.dev/valid-attachments", attachments.as_str()), ("cni.dev/attachments", &attachments)];
            for error in self.whole(list, Verb::Gc, self.del_timeout, &extra).await {
                // Log: A plugin failed in GC.
                // Do: See its message in `error`.
                tracing::warn!(%error, "CNI garbage collection");
            }
        }
    }

    /// Everything that a network's plugins must keep: ours, those of this process, those that others cached.
    fn valid_attachments(&self, list: &NetworkList, interfaces: &[&str], valid: &HashSet<&str>) -> Value {
        let mut sandboxes: HashSet<String> = valid.iter().map(|id| (*id).to_owned()).collect();
        sandboxes.extend(lock(&self.attached).iter().map(SandboxId::to_string));
        let each = |id: &String| {
            let id = id.clone();
            interfaces.iter().map(move |interface| (id.clone(), (*interface).to_owned()))
        };
        let mut keep: HashSet<(String, String)> = sandboxes.iter().flat_map(each).collect();
        // What is still cached could not be detached: it keeps its address until it can. So does a pod that was
        // attached when the network had another position.
        let cached = self.cache.all().into_iter().filter(|entry| entry.network_name == list.name);
        keep.extend(cached.map(|entry| (entry.container_id.clone(), entry.interface().to_owned())));
        keep.into_iter().map(|(id, interface)| json!({"containerID": id, "ifname": interface})).collect()
    }

    async fn alone(&self) -> Option<tokio::sync::RwLockWriteGuard<'_, ()>> {
        for _ in 0..GATE_TRIES {
            if let Ok(guard) = self.gate.try_write() {
                return Some(guard);
            }
            tokio::time::sleep(GATE_PAUSE).await;
        }
        None
    }
}
