//! One network configuration: a list of plugins with the input of each.
//!
//! Keeps every value as its original bytes, so that unknown keys, and numbers of any size, reach the plugin unchanged.
//! Never opens files.

use super::version::Version;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;
use serde_json::{Map, Value};
use std::collections::HashSet;
use std::fmt;
use std::sync::Arc;

/// A JSON object that keeps its values verbatim and in order.
pub(super) struct RawObject(Vec<(String, Box<RawValue>)>);

impl<'de> Deserialize<'de> for RawObject {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Fields;
        impl<'de> Visitor<'de> for Fields {
            type Value = RawObject;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<RawObject, A::Error> {
                let mut fields: Vec<(String, Box<RawValue>)> = Vec::new();
                while let Some((key, value)) = map.next_entry::<String, Box<RawValue>>()? {
                    fields.push((key, value));
                }
                // The last of equal keys counts, as everywhere in Go.
                let mut known = HashSet::new();
                let last: Vec<bool> =
                    fields.iter().rev().map(|(key, _)| known.insert(key.as_str())).collect();
                let mut last = last.into_iter().rev();
                fields.retain(|_| last.next().unwrap_or_default());
                Ok(RawObject(fields))
            }
        }
        deserializer.deserialize_map(Fields)
    }
}

impl RawObject {
    fn get<'a, T: Deserialize<'a>>(&'a self, key: &str) -> Result<Option<T>, String> {
        match self.0.iter().find(|(k, _)| k == key) {
            Some((_, raw)) if raw.get() != "null" => {
                serde_json::from_str(raw.get()).map(Some).map_err(|e| format!("{key:?}: {e}"))
            }
            _ => Ok(None),
        }
    }

    /// A boolean, which may be written as a string (libcni).
    fn flag(&self, key: &str) -> Result<bool, String> {
        match self.get::<Value>(key)? {
            None => Ok(false),
            Some(Value::Bool(value)) => Ok(value),
            Some(Value::String(text)) if text == "true" => Ok(true),
            Some(Value::String(text)) if text == "false" => Ok(false),
            Some(other) => Err(format!("{key:?}: {other} is no boolean")),
        }
    }

    fn render(&self, skip: impl Fn(&str) -> bool) -> String {
        let mut out = String::from("{");
        for (key, value) in self.0.iter().filter(|(key, _)| !skip(key)) {
            push_field(&mut out, key, value.get());
        }
        out.push('}');
        out
    }
}

fn push_field(object: &mut String, key: &str, value: &str) {
    if !object.ends_with('{') {
        object.push(',');
    }
    object.push_str(&Value::from(key).to_string());
    object.push(':');
    object.push_str(value);
}

/// One plugin of a list.
#[derive(Debug)]
pub(super) struct Plugin {
    /// `type`: the name of its program.
    pub(super) kind: String,
    /// Capabilities that it declares.
    pub(super) capabilities: Vec<String>,
    /// The object without what the runtime sets, and without its closing brace.
    body: String,
    /// The whole object, for the cache.
    whole: String,
    /// A `runtimeConfig` of the file itself, used if the runtime has none.
    runtime_config: Option<String>,
}

/// Keys of a plugin's object that the runtime decides on (specification section 3).
const RUNTIME_KEYS: [&str; 5] = ["name", "cniVersion", "capabilities", "runtimeConfig", "prevResult"];
/// Keys of the protocol itself, never taken from a file.
const RESERVED_PREFIX: &str = "cni.dev/";

impl Plugin {
    fn parse(object: &RawObject) -> Result<Self, String> {
        let kind: String = object
            .get("type")?
            .ok_or("\"type\" is missing; a list of plugins belongs into a .conflist file")?;
        if kind.is_empty() || kind.contains('/') || kind.starts_with('.') {
            return Err(format!("\"type\": {kind:?} is no name of a program"));
        }
        let declared: Map<String, Value> = object.get("capabilities")?.unwrap_or_default();
        let capabilities =
            declared.into_iter().filter(|(_, v)| *v == Value::Bool(true)).map(|(k, _)| k).collect();
        let mut body = object.render(|key| RUNTIME_KEYS.contains(&key) || key.starts_with(RESERVED_PREFIX));
        body.pop();
        let runtime_config = object.get::<Box<RawValue>>("runtimeConfig")?.map(|raw| raw.get().to_owned());
        Ok(Self { kind, capabilities, body, whole: object.render(|_| false), runtime_config })
    }
}

/// A network: what ADD runs through, and DEL backwards.
#[derive(Debug)]
pub(super) struct NetworkList {
    pub(super) name: String,
    pub(super) version: Version,
    pub(super) disable_check: bool,
    pub(super) disable_gc: bool,
    pub(super) plugins: Vec<Plugin>,
    /// The list as one self-contained document, base64, as the cache stores it.
    pub(super) encoded: Arc<str>,
}

/// A list that may still lack the plugins of its drop-in directory.
pub(super) struct Draft {
    object: RawObject,
    pub(super) name: String,
    version: Version,
    plugins: Vec<Plugin>,
    /// Whether `<dir>/<name>/*.conf` belong to it.
    pub(super) wants_drop_ins: bool,
}

impl Draft {
    /// Reads a `.conflist`.
    pub(super) fn list(bytes: &[u8]) -> Result<Self, String> {
        let object: RawObject = serde_json::from_slice(bytes).map_err(|e| e.to_string())?;
        let name = name_of(&object)?;
        let version = version_of(&object)?;
        let wants_drop_ins = version >= Version::STATUS_AND_GC && !object.flag("loadOnlyInlinedPlugins")?;
        let inlined: Option<Vec<RawObject>> = object.get("plugins")?;
        if inlined.is_none() && !wants_drop_ins {
            return Err("\"plugins\" is missing".into());
        }
        let plugins = inlined.unwrap_or_default().iter().map(Plugin::parse).collect::<Result<_, _>>()?;
        Ok(Self { object, name, version, plugins, wants_drop_ins })
    }

    /// Parses a `.conf` or `.json`: one plugin, which becomes a list of one.
    pub(super) fn single(bytes: &[u8]) -> Result<Self, String> {
        let object: RawObject = serde_json::from_slice(bytes).map_err(|e| e.to_string())?;
        let plugins = vec![Plugin::parse(&object)?];
        let (name, version) = (name_of(&object)?, version_of(&object)?);
        Ok(Self { object: RawObject(Vec::new()), name, version, plugins, wants_drop_ins: false })
    }

    /// Appends a plugin of the drop-in directory.
    pub(super) fn push(&mut self, bytes: &[u8]) -> Result<(), String> {
        let object: RawObject = serde_json::from_slice(bytes).map_err(|e| e.to_string())?;
        self.plugins.push(Plugin::parse(&object)?);
        Ok(())
    }

    pub(super) fn finish(self) -> Result<NetworkList, String> {
        if self.plugins.is_empty() {
            return Err("it has no plugins".into());
        }
        const SET: [&str; 5] = ["name", "cniVersion", "cniVersions", "plugins", "loadOnlyInlinedPlugins"];
        let mut document = self.object.render(|key| SET.contains(&key));
        document.pop();
        push_field(&mut document, "name", &Value::from(self.name.as_str()).to_string());
        push_field(&mut document, "cniVersion", &Value::from(self.version.as_str()).to_string());
        push_field(&mut document, "loadOnlyInlinedPlugins", "true");
        let whole: Vec<&str> = self.plugins.iter().map(|plugin| plugin.whole.as_str()).collect();
        push_field(&mut document, "plugins", &format!("[{}]", whole.join(",")));
        document.push('}');
        Ok(NetworkList {
            disable_check: self.object.flag("disableCheck")?,
            disable_gc: self.object.flag("disableGC")?,
            name: self.name,
            version: self.version,
            plugins: self.plugins,
            encoded: BASE64.encode(document).into(),
        })
    }
}

fn name_of(object: &RawObject) -> Result<String, String> {
    let name: String = object.get("name")?.ok_or("\"name\" is missing")?;
    let first = name.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric());
    if !first || !name.bytes().all(|b| b.is_ascii_alphanumeric() || b"_.-".contains(&b)) {
        return Err(format!(
            "\"name\": {name:?} must be letters, digits, '_', '.', '-' and begin with neither sign"
        ));
    }
    Ok(name)
}

/// The newest version that both the file offers and we speak.
fn version_of(object: &RawObject) -> Result<Version, String> {
    let one: Option<String> = object.get("cniVersion")?;
    let more: Vec<String> = object.get("cniVersions")?.unwrap_or_default();
    let offered: Vec<&str> = one.iter().chain(&more).map(String::as_str).filter(|v| !v.is_empty()).collect();
    if offered.is_empty() {
        return Ok(Version::UNSPECIFIED);
    }
    let spoken = offered.iter().filter_map(|text| Version::parse(text)).max();
    spoken.ok_or_else(|| format!("none of its CNI versions is supported: {}", offered.join(", ")))
}

impl NetworkList {
    /// Reads back what [`NetworkList::encoded`] holds, or what another runtime cached.
    pub(super) fn decode(encoded: &str) -> Result<Self, String> {
        let bytes = BASE64.decode(encoded).map_err(|e| e.to_string())?;
        let mut draft = Draft::list(&bytes)?;
        draft.wants_drop_ins = false;
        draft.finish()
    }

    /// The stdin of plugin number `index`.
    pub(super) fn stdin(
        &self,
        plugin: &Plugin,
        capability_args: &Map<String, Value>,
        previous: Option<&RawValue>,
        extra: &[(&str, &str)],
    ) -> Vec<u8> {
        let mut out = String::with_capacity(plugin.body.len() + previous.map_or(0, |p| p.get().len()) + 512);
        out.push_str(&plugin.body);
        push_field(&mut out, "name", &Value::from(self.name.as_str()).to_string());
        push_field(&mut out, "cniVersion", &Value::from(self.version.as_str()).to_string());
        let wanted: Map<String, Value> = plugin
            .capabilities
            .iter()
            .filter_map(|key| capability_args.get(key).map(|value| (key.clone(), value.clone())))
            .collect();
        if !wanted.is_empty() {
            push_field(&mut out, "runtimeConfig", &Value::Object(wanted).to_string());
        } else if let Some(written) = &plugin.runtime_config {
            push_field(&mut out, "runtimeConfig", written);
        }
        if let Some(previous) = previous {
            push_field(&mut out, "prevResult", previous.get());
        }
        for (key, value) in extra {
            push_field(&mut out, key, value);
        }
        out.push('}');
        out.into_bytes()
    }

    /// Whether some plugin declares the capability.
    pub(super) fn can(&self, capability: &str) -> bool {
        self.plugins.iter().any(|plugin| plugin.capabilities.iter().any(|c| c == capability))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(text: &str) -> Result<NetworkList, String> {
        Draft::list(text.as_bytes()).and_then(Draft::finish)
    }

    fn stdin(list: &NetworkList, index: usize, args: Value) -> String {
        let Value::Object(args) = args else { panic!() };
        String::from_utf8(list.stdin(&list.plugins[index], &args, None, &[])).unwrap()
    }

    #[test]
    fn unknown_keys_and_big_numbers_reach_the_plugin_as_written() {
        let list = list(
            r#"{"cniVersion":"1.0.0","name":"n","plugins":[{"type":"p","name":"x","big":123456789012345678901234567890,
               "cni.dev/attachments":[], "f":1.50, "nested":{"b":1,"a":[ 2 ]}}]}"#,
        )
        .unwrap();
        assert_eq!(
            stdin(&list, 0, serde_json::json!({})),
            r#"{"type":"p","big":123456789012345678901234567890,"f":1.50,"nested":{"b":1,"a":[ 2 ]},"name":"n","cniVersion":"1.0.0"}"#
        );
    }

    #[test]
    fn runtime_config_has_only_what_is_declared_true() {
        let list = list(
            r#"{"cniVersion":"1.0.0","name":"n","plugins":[{"type":"a","capabilities":{"x":true,"y":false}},{"type":"b"}]}"#,
        )
        .unwrap();
        let args = serde_json::json!({"x": 1, "y": 2, "z": 3});
        assert_eq!(
            stdin(&list, 0, args.clone()),
            r#"{"type":"a","name":"n","cniVersion":"1.0.0","runtimeConfig":{"x":1}}"#
        );
        assert!(!stdin(&list, 1, args).contains("runtimeConfig"));
        assert!(list.can("x") && !list.can("y"));
    }

    #[test]
    fn a_file_of_keys_costs_no_more_than_its_length() {
        let keys: String = (0..100_000).map(|n| format!("\"{n}\":0,")).collect();
        let text = format!(r#"{{"name":"x",{keys}"5":1,"name":"n","plugins":[{{"type":"a"}}]}}"#);
        let begun = std::time::Instant::now();
        let list = list(&text).unwrap();
        assert_eq!(list.name, "n", "the last of equal keys counts");
        // Less than a second; comparing each with each took minutes.
        assert!(begun.elapsed().as_secs() < 60);
    }

    #[test]
    fn the_newest_common_version_is_chosen() {
        let version =
            |v: &str| list(&format!(r#"{{{v}"name":"n","plugins":[{{"type":"a"}}]}}"#)).map(|l| l.version);
        assert_eq!(
            version(r#""cniVersion":"0.4.0","cniVersions":["1.0.0","9.0.0","0.3.1"],"#),
            Ok(Version::V1_0_0)
        );
        assert_eq!(version(""), Ok(Version::V0_1_0));
        assert!(version(r#""cniVersion":"9.0.0","#).unwrap_err().contains("9.0.0"));
    }

    #[test]
    fn bad_lists_are_refused() {
        for (text, word) in [
            (r#"{"name":"n"}"#, "plugins"),
            (r#"{"name":"n","plugins":[]}"#, "no plugins"),
            (r#"{"name":"n","plugins":[{}]}"#, "type"),
            (r#"{"name":"n","plugins":[{"type":"../sh"}]}"#, "no name of a program"),
            (r#"{"name":"n","plugins":[{"type":".."}]}"#, "no name of a program"),
            (r#"{"name":"../n","plugins":[{"type":"a"}]}"#, "begin"),
            (r#"{"plugins":[{"type":"a"}]}"#, "name"),
            (r#"{"name":"n","disableGC":3,"plugins":[{"type":"a"}]}"#, "disableGC"),
            ("[]", "object"),
        ] {
            let error = list(text).map(|l| l.name).unwrap_err();
            assert!(error.contains(word), "{text}: {error}");
        }
        let misnamed =
            Draft::single(br#"{"name":"n","plugins":[{"type":"a"}]}"#).map(|d| d.name).unwrap_err();
        assert!(misnamed.contains("\"type\" is missing"), "{misnamed}");
    }

    #[test]
    fn flags_may_be_strings_and_survive_the_cache() {
        let first =
            list(r#"{"cniVersion":"1.1.0","name":"n","disableGC":"true","plugins":[{"type":"a","capabilities":{"x":true}}]}"#)
                .unwrap();
        assert!(first.disable_gc);
        let again = NetworkList::decode(&first.encoded).unwrap();
        assert!(again.disable_gc && again.can("x") && again.version == Version::V1_1_0);
    }
}
