//! A pod's attachments to all its networks: made one after the other, undone and ended in reverse.
//!
//! Owns the networks of a call. `chain` owns what each plugin receives.

use super::cache::{Entry, Known};
use super::chain::Pod;
use super::directory::Chosen;
use super::error::{Failures, NetworkError};
use super::{Attachment, FurtherInterface, Inner, PodNetwork, args, live_netns, lock, orphans};
use std::path::Path;
use std::time::Duration;

impl Inner {
    pub(super) async fn attach(&self, request: &Attachment) -> Result<PodNetwork, NetworkError> {
        let networks = self.current()?;
        let name = request.pod.to_string();
        let arguments = args::cni_args(request)?;
        let capability_args = args::capability_args(request)?;
        if !request.port_mappings.is_empty() && !networks.iter().any(|n| n.list.can(args::PORT_MAPPINGS)) {
            // Log: The pod's `hostPort` has no effect.
            // Do: Add `portmap` to the CNI configuration.
            tracing::warn!(
                pod = name,
                networks = ?networks.iter().map(|network| network.list.name.as_str()).collect::<Vec<_>>(),
                "pod has host ports, but no plugin of the network maps ports"
            );
        }
        let pod = Pod { netns: request.netns.as_deref().unwrap_or(Path::new("")), name: &name };
        let id = request.sandbox.as_str();
        let _shared = self.gate.read().await;
        lock(&self.attached).insert(request.sandbox.clone());
        let (mut made, mut interfaces) = (Vec::new(), Vec::new());
        let mut spent = Duration::ZERO;
        for network in &*networks {
            let (arguments, capability_args) = (arguments.clone(), capability_args.clone());
            let mut entry = Entry::new(network, id, pod.netns, arguments, capability_args);
            match self.join(&network.list, &mut entry, &pod, &mut spent).await {
                Ok(addresses) => interfaces.push(FurtherInterface {
                    network: network.list.name.clone(),
                    interface: network.interface.clone(),
                    ips: addresses.ips,
                    mac: addresses.mac,
                }),
                Err((error, undo)) => {
                    let undone = self.take_back(&networks, &made, &pod, undo).await;
                    if undone.is_empty() {
                        lock(&self.attached).remove(&request.sandbox);
                        return Err(error);
                    }
                    return Err(NetworkError::NotUndone { error: error.into(), undo: Failures(undone) });
                }
            }
            made.push(entry);
        }
        let mut interfaces = interfaces.into_iter();
        let Some(FurtherInterface { network, ips, mac, .. }) = interfaces.next() else {
            return Err(self.not_configured("it names no network"));
        };
        Ok(PodNetwork { network, ips, mac, further: interfaces.collect(), plugin_time: spent })
    }

    /// Detaches from the networks before the one whose ADD failed. Adds to `failures`.
    async fn take_back(
        &self,
        networks: &[Chosen],
        made: &[Entry],
        pod: &Pod<'_>,
        mut failures: Vec<NetworkError>,
    ) -> Vec<NetworkError> {
        for entry in made.iter().rev() {
            failures.extend(self.leave(networks, entry, pod, &mut Duration::default()).await.err());
        }
        failures
    }

    pub(super) async fn detach(&self, request: &Attachment) -> Result<Duration, NetworkError> {
        let _bar = self.checkups.bar(&request.sandbox).await;
        let leaving = lock(&self.leaving).remove(request.sandbox.as_str());
        orphans::wait(leaving.unwrap_or_default(), self.del_timeout).await;
        let _shared = self.gate.read().await;
        let (netns, name) = (live_netns(request.netns.as_deref()), request.pod.to_string());
        let pod = Pod { netns: &netns, name: &name };
        let current = self.current().ok();
        let current = current.as_deref().unwrap_or_default();
        let likely = current.first().map(|network| network.list.name.as_str());
        let Known { entries, torn } = self.cache.of(likely, request.sandbox.as_str());
        let mut spent = Duration::ZERO;
        let mut failures = Vec::new();
        for entry in entries.iter().rev() {
            failures.extend(self.leave(current, entry, &pod, &mut spent).await.err());
        }
        if entries.is_empty() || torn {
            let arguments = args::cni_args_to_detach(request);
            // A bad annotation stopped ADD before any plugin ran.
            let capability_args = args::capability_args(request).unwrap_or_default();
            let unknown = current.iter().rev().filter(|network| !entries.iter().any(|e| e.is_of(network)));
            for network in unknown {
                let (arguments, capability_args) = (arguments.clone(), capability_args.clone());
                let id = request.sandbox.as_str();
                let entry = Entry::new(network, id, &netns, arguments, capability_args);
                self.leave_unknown(&network.list, &entry, &pod, &mut spent).await;
            }
        }
        if let Some(error) = Failures(failures).into_error() {
            return Err(error);
        }
        lock(&self.attached).remove(&request.sandbox);
        Ok(spent)
    }
}
