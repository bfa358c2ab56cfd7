use super::*;
use crate::model;
use crate::sandbox::words::{record, state};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// Records as every version that was on the main branch wrote them, by the number of the change.
const PODS: [&str; 2] = [include_str!("fixtures/1-pod.json"), include_str!("fixtures/7-pod-selinux.json")];
const POD_STATES: [&str; 5] = [
    include_str!("fixtures/1-pod-state.json"),
    include_str!("fixtures/1-pod-state-held.json"),
    include_str!("fixtures/3-pod-state-limits.json"),
    include_str!("fixtures/5-pod-state-networks.json"),
    include_str!("fixtures/8-pod-state-monitor.json"),
];
const CONTAINERS: [&str; 4] = [
    include_str!("fixtures/1-container.json"),
    include_str!("fixtures/2-container-image-volume.json"),
    include_str!("fixtures/4-container-restore.json"),
    include_str!("fixtures/6-container-restore.json"),
];
const CONTAINER_STATES: [&str; 2] =
    [include_str!("fixtures/1-container-state.json"), include_str!("fixtures/1-container-state-exited.json")];

fn read<T: DeserializeOwned>(text: &str) -> T {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

/// Read, made live, saved and read again.
fn all<T: DeserializeOwned + Serialize + Saved<Live>, Live: PartialEq + std::fmt::Debug>(
    texts: &[&str],
) -> Vec<Live> {
    texts
        .iter()
        .map(|text| {
            let live = read::<T>(text).live();
            let again = serde_json::to_string(&T::save(&live)).unwrap();
            assert_eq!(read::<T>(&again).live(), live);
            live
        })
        .collect()
}

#[test]
fn records_of_every_version_are_read() {
    let pods: Vec<model::SandboxSpec> = all::<SandboxSpec, _>(&PODS);
    assert_eq!(pods[0].selinux_level, None);
    assert_eq!(pods[1].selinux_level.as_deref(), Some("s0:c1,c2"));
    let states: Vec<record::PodState> = all::<PodState, _>(&POD_STATES);
    let state::SandboxState::Ready { network: Some(network) } = &states[0].sandbox else { panic!() };
    assert!(network.further.is_empty() && network.ips.len() == 2);
    assert!(states[..3].iter().all(|state| state.monitor.is_none()));
    assert_eq!(states[4].monitor.map(|process| process.pid), Some(77));
    let containers: Vec<model::ContainerSpec> = all::<ContainerSpec, _>(&CONTAINERS);
    assert_eq!(containers[0].restore, None);
    let model::MountSource::Image(volume) = &containers[0].mounts[1].source else { panic!() };
    assert_eq!((volume.sub_path.as_str(), &volume.resolved), ("x", &None));
    let directory = PathBuf::from("/var/lib/kubelet/checkpoints/web/app");
    assert_eq!(containers[2].restore, Some(model::Restore::Directory(directory)));
    assert!(matches!(containers[3].restore, Some(model::Restore::Archive(_))));
    let states: Vec<record::ContainerRecord> = all::<ContainerRecord, _>(&CONTAINER_STATES);
    assert!(matches!(states[0].container, state::ContainerState::Running { .. }));
}

/// The fields without which a record is not read, in an object and below it.
fn required<T: DeserializeOwned>(whole: &Value, at: &str, found: &mut Vec<String>) {
    let part = whole.pointer(at).unwrap();
    let below: Vec<String> = match part {
        Value::Object(fields) => fields.keys().cloned().collect(),
        Value::Array(elements) => (0..elements.len()).map(|number| number.to_string()).collect(),
        _ => return,
    };
    for name in below {
        let place = format!("{at}/{}", name.replace('~', "~0").replace('/', "~1"));
        if part.is_object() {
            let mut less = whole.clone();
            less.pointer_mut(at).unwrap().as_object_mut().unwrap().remove(&name);
            if T::deserialize(&less).is_err() {
                found.push(place.clone());
            }
        }
        required::<T>(whole, &place, found);
    }
}

#[test]
fn a_field_that_is_missing_is_a_default_but_for_those_of_the_first_version() {
    let mut found = Vec::new();
    required::<ContainerSpec>(&read(CONTAINERS[1]), "", &mut found);
    let expected = "/created_at /id /image /image/id /mounts/0/container_path \
                    /mounts/0/gid_mappings/0/container_id /mounts/0/gid_mappings/0/host_id /mounts/0/gid_mappings/0/length \
                    /mounts/0/source /mounts/0/source/host";
    for place in expected.split_whitespace() {
        assert!(found.iter().any(|field| field == place), "{place} is no longer required: {found:?}");
    }
    let (mut pod, mut state) = (Vec::new(), Vec::new());
    required::<SandboxSpec>(&read(PODS[1]), "", &mut pod);
    required::<ContainerRecord>(&read(CONTAINER_STATES[0]), "", &mut state);
    let newer = [
        "readonly_paths",
        "security",
        "envs",
        "attempt",
        "namespaces",
        "sysctls",
        "user/username",
        "resources",
    ];
    for name in newer {
        let is_it = |field: &&String| field.ends_with(&format!("/{name}"));
        let all = found.iter().chain(&pod).chain(&state);
        assert_eq!(all.filter(is_it).count(), 0, "without {name} a record is not read");
    }
}

#[test]
fn of_a_record_that_cannot_be_read_every_field_is_kept_that_can() {
    let (pod, id) = (SandboxId::random().unwrap(), ContainerId::random().unwrap());
    let mut text: Value = read(CONTAINERS[3]);
    text["version"] = json!(9);
    text["mounts"] = json!({ "of": "another kind" });
    text["image"]["id"] = json!(7);
    text["labels"] = json!({ "io.kubernetes.container.name": "app" });
    let spec = salvaged(text.to_string().as_bytes(), &pod, &id).unwrap().live();
    assert_eq!((&spec.id, &spec.sandbox_id, spec.name.as_str(), spec.attempt), (&id, &pod, "app", 1));
    assert_eq!(spec.labels["io.kubernetes.container.name"], "app");
    assert!(spec.mounts.is_empty() && spec.restore.is_some());
    for text in ["", "{", "[]", "null"] {
        let spec = salvaged(text.as_bytes(), &pod, &id).unwrap().live();
        assert_eq!((&spec.id, spec.name.as_str()), (&id, id.as_str()));
    }
}
