//! Entry points for the fuzz targets in `fuzz/`, which see only public items: hostile bytes to the parsers of this
//! layer. Built with `--cfg fuzzing`, and for tests that use every entry point. A panic, a standstill or a failed
//! assertion here is a finding.

use super::acts::records;
use super::words::saved::{ContainerRecord, ContainerSpec, PodState, SandboxSpec};
use crate::host::monitor::{ExitRecord, MonitorInfo};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::fmt::Debug;
use std::path::Path;

/// Records by the first byte: a pod's spec and state, a container's, a monitor's, an exit's.
pub fn records(data: &[u8]) {
    let Some((door, data)) = data.split_first() else { return };
    match door % 6 {
        0 => records::fuzz::<SandboxSpec>(data),
        1 => records::fuzz::<PodState>(data),
        2 => records::fuzz::<ContainerSpec>(data),
        3 => records::fuzz::<ContainerRecord>(data),
        4 => round_trip::<MonitorInfo>(data),
        _ => round_trip::<ExitRecord>(data),
    }
}

/// What is read is written and read back the same.
fn round_trip<T: DeserializeOwned + Serialize + PartialEq + Debug>(data: &[u8]) {
    let Ok(value) = serde_json::from_slice::<T>(data) else { return };
    let text = serde_json::to_vec(&value).expect("a record is written");
    assert_eq!(serde_json::from_slice::<T>(&text).expect("what was written is read back"), value);
}

/// Files of a checkpoint by the first byte: a whole archive, CRIU's images of host name and IPC, removed paths, an OCI
/// configuration. `dir` is an existing directory; the entry point changes only its own files there.
pub fn checkpoint(dir: &Path, data: &[u8]) {
    super::checkpoint::fuzz::any(dir, data);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::fuzz::seeds::through;

    #[test]
    fn seeds_and_what_is_near_them_go_through_every_door() {
        through("records", 6, records);
        for (name, is_read) in [
            ("pod", records::reads::<SandboxSpec> as fn(&[u8]) -> bool),
            ("pod-state", records::reads::<PodState>),
            ("pod-state-held", records::reads::<PodState>),
            ("container", records::reads::<ContainerSpec>),
            ("container-state", records::reads::<ContainerRecord>),
            ("container-state-exited", records::reads::<ContainerRecord>),
        ] {
            let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/seeds/records").join(name);
            assert!(is_read(&std::fs::read(path).unwrap()[1..]), "{name} is no record any more");
        }
        let dir = tempfile::tempdir().unwrap();
        through("checkpoint", 5, |data| checkpoint(dir.path(), data));
    }
}
