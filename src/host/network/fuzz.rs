//! The network's entry points for the fuzz target `cni`.

use super::list::{Draft, NetworkList, RawObject};
use super::version::Version;
use super::{INTERFACE, cache, result};
use serde_json::Map;

/// By the first byte: a result, a list, a single plugin's configuration, an entry of the cache.
pub(in crate::host) fn any(data: &[u8]) {
    let Some((door, data)) = data.split_first() else { return };
    match door % 4 {
        0 => results(data),
        1 => configuration(Draft::list(data)),
        2 => configuration(Draft::single(data)),
        _ => entry(data),
    }
}

/// A result converted to a version has it.
fn results(data: &[u8]) {
    for want in [Version::V0_2_0, Version::V0_4_0, Version::V1_1_0] {
        let Ok(taken) = result::accept(data, want) else { continue };
        let again = result::bring_to(taken.clone(), want).expect("a result of the right version");
        assert_eq!(again.get(), taken.get(), "it was changed again");
        let _ = result::addresses(&taken, INTERFACE);
    }
}

/// An accepted list can be cached and read back, and its plugins receive JSON.
fn configuration(draft: Result<Draft, String>) {
    let Ok(list) = draft.and_then(Draft::finish) else { return };
    let again = NetworkList::decode(&list.encoded).expect("what was cached is read back");
    assert_eq!((&again.name, again.version), (&list.name, list.version));
    assert_eq!((again.disable_check, again.disable_gc), (list.disable_check, list.disable_gc));
    assert_eq!(again.plugins.len(), list.plugins.len());
    for (plugin, cached) in list.plugins.iter().zip(&again.plugins) {
        assert_eq!((&plugin.kind, &plugin.capabilities), (&cached.kind, &cached.capabilities));
        let stdin = list.stdin(plugin, &Map::new(), None, &[]);
        serde_json::from_slice::<RawObject>(&stdin).map(drop).expect("a plugin is given an object");
    }
}

/// What is read is written and read back the same.
fn entry(data: &[u8]) {
    let Ok(entry) = cache::read(data) else { return };
    let _ = (entry.args(), entry.pod(), entry.is_ours(), entry.place(), entry.capability_args());
    let _ = NetworkList::decode(&entry.config);
    let text = serde_json::to_vec(&entry).expect("an entry is written");
    let again = cache::read(&text).expect("what was written is read back");
    assert_eq!(serde_json::to_vec(&again).expect("an entry is written"), text);
}
