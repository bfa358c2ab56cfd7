//! What became of it: `state.json` of pods and containers.

use super::request::Resources;
use super::{Saved, structure, variants};
use crate::host::network::{self, FurtherInterface as LiveInterface, PodNetwork as LiveNetwork};
use crate::host::users as live_users;
use crate::model::Timestamp;
use crate::sandbox::words::{record as live_record, state as live};
use podwright_monitor_proto::ProcessId;
use std::net::IpAddr;
use std::time::Duration;

structure! {
    live_record::PodState { sandbox: SandboxState }
    else default {
        #[serde(skip_serializing_if = "Option::is_none")]
        limits: Option<PodLimits>,
        #[serde(skip_serializing_if = "Option::is_none")]
        monitor: Option<ProcessId>,
    }
}

structure! {
    live_record::PodLimits {} else default { overhead: Option<Resources>, resources: Option<Resources> }
}

structure! {
    live_record::ContainerRecord { container: ContainerState }
    else default { resources: Resources, user: Option<User> }
}

structure! {
    live_users::User { uid: u32, gid: u32 }
    else default { additional_gids: Vec<u32>, home: String, username: Option<String> }
}

variants! {
    #[serde(tag = "state")]
    live::SandboxState {
        Preparing,
        Ready { network: Option<PodNetwork> },
        NotReady { why: NotReadyCause, resources: Holdings },
    }
}

variants! {
    live::NotReadyCause { Stopped, BringUpFailed(why: String), Interrupted, MonitorLost, Rebooted, }
}

variants! { live::Holdings { Held, Released, } }

variants! {
    #[serde(tag = "state")]
    live::ContainerState {
        Creating,
        Created,
        Starting,
        Running { init: Init, since: Timestamp },
        Exited { started_at: Option<Timestamp>, exit: Exit },
    }
}

structure! { live::Init { pid: u32, start_time: u64 } }

structure! {
    live::Exit { code: i32, reason: ExitReason, finished_at: Timestamp, source: ExitSource }
    else default { message: String }
}

variants! { live::ExitReason { Completed, Error, OomKilled, StartError, Unknown, } }

variants! { live::ExitSource { Monitor, Runtime, Assumed, } }

structure! {
    network::FurtherInterface { network: String, interface: String }
    else default { ips: Vec<IpAddr>, mac: Option<String> }
}

/// Of a live one the time of its plugins is not saved.
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
pub(in crate::sandbox) struct PodNetwork {
    network: String,
    ips: Vec<IpAddr>,
    #[serde(default)]
    mac: Option<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    further: Vec<FurtherInterface>,
}

impl Saved<LiveNetwork> for PodNetwork {
    fn save(live: &LiveNetwork) -> Self {
        let LiveNetwork { network, ips, mac, further, plugin_time: _ } = live;
        let further: &Vec<LiveInterface> = further;
        Self { network: network.clone(), ips: ips.clone(), mac: mac.clone(), further: Saved::save(further) }
    }

    fn live(self) -> LiveNetwork {
        let Self { network, ips, mac, further } = self;
        LiveNetwork { network, ips, mac, further: further.live(), plugin_time: Duration::ZERO }
    }
}
