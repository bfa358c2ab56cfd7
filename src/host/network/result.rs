//! Results of ADD: checked, converted to the version of the configuration, and read for the pod's addresses.
//!
//! Knows the result formats 0.1.0 to 1.1.0. Never changes a result of the right version.

use super::version::Version;
use serde::Deserialize;
use serde_json::value::{RawValue, to_raw_value};
use serde_json::{Map, Value, json};
use std::net::IpAddr;

/// Takes a plugin's output as a result of version `want`.
pub(super) fn accept(stdout: &[u8], want: Version) -> Result<Box<RawValue>, String> {
    let text = std::str::from_utf8(stdout).map_err(|e| e.to_string())?.trim();
    if text.is_empty() {
        return Err("nothing on stdout".into());
    }
    let raw: Box<RawValue> = serde_json::from_str(text).map_err(|e| e.to_string())?;
    bring_to(raw, want)
}

#[derive(Deserialize)]
struct Head {
    #[serde(default, rename = "cniVersion")]
    version: String,
}

/// Converts a result to version `want`, as `prevResult` requires.
pub(super) fn bring_to(raw: Box<RawValue>, want: Version) -> Result<Box<RawValue>, String> {
    let head: Head = serde_json::from_str(raw.get()).map_err(|e| e.to_string())?;
    let have = match head.version.as_str() {
        // Old plugins omit it; only a result with `ip4` or `ip6` can then be of the oldest kind.
        "" => None,
        text => {
            Some(Version::parse(text).ok_or_else(|| format!("its cniVersion {text:?} is not supported"))?)
        }
    };
    if have == Some(want) {
        return Ok(raw);
    }
    let mut object: Map<String, Value> = serde_json::from_str(raw.get()).map_err(|e| e.to_string())?;
    let old_form = object.contains_key("ip4") || object.contains_key("ip6");
    if old_form && want >= Version::IP_LISTS {
        lists_from_families(&mut object);
    } else if !old_form && want < Version::IP_LISTS {
        families_from_lists(&mut object);
    }
    if want >= Version::IP_LISTS {
        state_family(&mut object, want < Version::NO_FAMILY);
    }
    object.insert("cniVersion".into(), want.as_str().into());
    to_raw_value(&object).map_err(|e| e.to_string())
}

fn lists_from_families(object: &mut Map<String, Value>) {
    let (mut ips, mut routes) = (Vec::new(), Vec::new());
    for key in ["ip4", "ip6"] {
        let Some(Value::Object(mut family)) = object.remove(key) else { continue };
        let mut ip = Map::new();
        ip.insert("address".into(), family.remove("ip").unwrap_or(Value::Null));
        if let Some(gateway) = family.remove("gateway") {
            ip.insert("gateway".into(), gateway);
        }
        ips.push(Value::Object(ip));
        if let Some(Value::Array(more)) = family.remove("routes") {
            routes.extend(more);
        }
    }
    object.insert("ips".into(), Value::Array(ips));
    if !routes.is_empty() {
        object.insert("routes".into(), Value::Array(routes));
    }
}

fn families_from_lists(object: &mut Map<String, Value>) {
    object.remove("interfaces");
    let ips = take_array(object, "ips");
    let routes = take_array(object, "routes");
    for (key, v6) in [("ip4", false), ("ip6", true)] {
        let of_family =
            |value: Option<&Value>| value.and_then(Value::as_str).is_some_and(|a| a.contains(':') == v6);
        let Some(ip) = ips.iter().find(|ip| of_family(ip.get("address"))) else { continue };
        let mut family = json!({"ip": ip["address"]});
        if let Some(gateway) = ip.get("gateway") {
            family["gateway"] = gateway.clone();
        }
        let own: Vec<Value> = routes.iter().filter(|route| of_family(route.get("dst"))).cloned().collect();
        if !own.is_empty() {
            family["routes"] = own.into();
        }
        object.insert(key.into(), family);
    }
}

fn take_array(object: &mut Map<String, Value>, key: &str) -> Vec<Value> {
    match object.remove(key) {
        Some(Value::Array(items)) => items,
        _ => Vec::new(),
    }
}

/// Sets or removes the `version` of each address.
fn state_family(object: &mut Map<String, Value>, stated: bool) {
    let Some(Value::Array(ips)) = object.get_mut("ips") else { return };
    for ip in ips.iter_mut().filter_map(Value::as_object_mut) {
        ip.remove("version");
        let v6 = ip.get("address").and_then(Value::as_str).is_some_and(|address| address.contains(':'));
        if stated {
            ip.insert("version".into(), if v6 { "6" } else { "4" }.into());
        }
    }
}

#[derive(Deserialize)]
struct Addresses {
    #[serde(default)]
    interfaces: Option<Vec<Interface>>,
    #[serde(default)]
    ips: Option<Vec<Ip>>,
    ip4: Option<OldIp>,
    ip6: Option<OldIp>,
}

#[derive(Deserialize)]
struct Interface {
    #[serde(default)]
    name: String,
    #[serde(default)]
    mac: Option<String>,
}

#[derive(Deserialize)]
struct Ip {
    address: String,
    interface: Option<i64>,
}

#[derive(Deserialize)]
struct OldIp {
    ip: String,
}

/// Addresses of the pod's interface, primary first, and its MAC if reported.
pub(super) struct PodAddresses {
    pub(super) ips: Vec<IpAddr>,
    pub(super) mac: Option<String>,
}

/// Reads the addresses of `interface`: those that name it and those that name none. The first IPv4 address comes first,
/// the others follow in their order (containerd's default `ip_pref`).
pub(super) fn addresses(result: &RawValue, interface: &str) -> Result<PodAddresses, String> {
    let result: Addresses = serde_json::from_str(result.get()).map_err(|e| e.to_string())?;
    let interfaces = result.interfaces.unwrap_or_default();
    let mut ips = Vec::new();
    for ip in result.ips.unwrap_or_default() {
        let ours = match ip.interface {
            None => true,
            Some(index) => usize::try_from(index)
                .ok()
                .and_then(|index| interfaces.get(index))
                .ok_or_else(|| format!("{} is of interface {index}, which is not listed", ip.address))?
                .name
                .eq(interface),
        };
        if ours {
            ips.push(plain(&ip.address)?);
        }
    }
    for old in [result.ip4, result.ip6].into_iter().flatten() {
        ips.push(plain(&old.ip)?);
    }
    if let Some(first) = ips.iter().position(IpAddr::is_ipv4) {
        ips[..=first].rotate_right(1);
    }
    let mac = interfaces.into_iter().find(|i| i.name == interface).and_then(|i| i.mac);
    Ok(PodAddresses { ips, mac: mac.filter(|mac| !mac.is_empty()) })
}

fn plain(address: &str) -> Result<IpAddr, String> {
    let bare = address.split_once('/').map_or(address, |(ip, _)| ip);
    bare.parse().map_err(|_| format!("{address:?} is no address"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ips(text: &str) -> Result<Vec<String>, String> {
        let raw: Box<RawValue> = serde_json::from_str(text).unwrap();
        addresses(&raw, "eth0").map(|a| a.ips.iter().map(ToString::to_string).collect())
    }

    #[test]
    fn first_v4_of_eth0_comes_first() {
        let text = r#"{"interfaces":[{"name":"br"},{"name":"eth0","sandbox":"/x"}],"ips":[
            {"address":"fd00::5/64","interface":1},{"address":"10.9.9.1/24","interface":0},
            {"address":"fd00::6/64"},{"address":"10.1.0.5/16","interface":1},{"address":"10.1.0.6/16","interface":1}]}"#;
        assert_eq!(ips(text).unwrap(), ["10.1.0.5", "fd00::5", "fd00::6", "10.1.0.6"]);
        assert_eq!(ips(r#"{"ips":[{"address":"fd00::5/64"}]}"#).unwrap(), ["fd00::5"]);
        assert_eq!(
            ips(r#"{"ip4":{"ip":"10.1.0.5/16"},"ip6":{"ip":"fd00::1/64"}}"#).unwrap(),
            ["10.1.0.5", "fd00::1"]
        );
        assert!(ips(r#"{"interfaces":null,"ips":null}"#).unwrap().is_empty());
    }

    #[test]
    fn nonsense_is_refused() {
        assert!(
            ips(r#"{"ips":[{"address":"10.1.0.5/16","interface":1}]}"#).unwrap_err().contains("not listed")
        );
        assert!(ips(r#"{"ips":[{"address":"ten"}]}"#).unwrap_err().contains("no address"));
        assert!(accept(b" \n", Version::V1_0_0).unwrap_err().contains("nothing"));
        assert!(accept(b"[]", Version::V1_0_0).is_err());
        assert!(accept(b"{\"cniVersion\":\"7.0.0\"}", Version::V1_0_0).unwrap_err().contains("7.0.0"));
    }

    #[test]
    fn the_right_version_is_left_alone() {
        let text = r#"{"cniVersion":"1.0.0", "ips":[ ],"unknown":1.0}"#;
        assert_eq!(accept(text.as_bytes(), Version::V1_0_0).unwrap().get(), text);
    }

    #[test]
    fn old_and_new_forms_convert() {
        let old = r#"{"cniVersion":"0.2.0","ip4":{"ip":"10.1.0.5/16","gateway":"10.1.0.1","routes":[{"dst":"0.0.0.0/0"}]},"dns":{}}"#;
        let middle = accept(old.as_bytes(), Version::V0_3_1).unwrap();
        assert_eq!(
            serde_json::from_str::<Value>(middle.get()).unwrap(),
            json!({"cniVersion":"0.3.1","dns":{},"ips":[{"address":"10.1.0.5/16","gateway":"10.1.0.1","version":"4"}],
                   "routes":[{"dst":"0.0.0.0/0"}]})
        );
        let new = bring_to(middle, Version::V1_0_0).unwrap();
        assert!(!new.get().contains("\"version\""));
        let back = bring_to(new, Version::V0_2_0).unwrap();
        assert_eq!(
            serde_json::from_str::<Value>(back.get()).unwrap(),
            serde_json::from_str::<Value>(old).unwrap()
        );
    }
}
