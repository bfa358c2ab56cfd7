//! Reads the configuration file and its drop-ins. Refuses a wrong key with file, line and a suggestion.

use super::{Config, DROP_IN_SUFFIX};
use std::path::{Path, PathBuf};

/// Why the configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// A file cannot be read.
    #[error("read configuration {path}: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// A file cannot be understood.
    #[error("{path}:{line}: {message}{hint}")]
    Invalid {
        /// The file.
        path: PathBuf,
        /// Line, from 1.
        line: usize,
        /// The fault.
        message: String,
        /// `; did you mean …?`, or empty.
        hint: String,
    },
    /// A value is out of its range.
    #[error("configuration key {key}: {message}")]
    Value {
        /// The key, dotted.
        key: &'static str,
        /// The fault and the allowed values.
        message: String,
    },
}

/// Loads `file` and the drop-ins beside it. A key in a later file overrides earlier ones.
///
/// # Errors
/// When a file cannot be read, has an unknown key or a value of the wrong kind. A missing `file` is an error
/// only when `required`.
pub fn load(file: &Path, required: bool) -> Result<Config, ConfigError> {
    let mut merged = toml::Table::new();
    let mut sources = Vec::new();
    if required || file.exists() {
        sources.push(file.to_owned());
    }
    sources.extend(drop_ins(file)?);
    for path in sources {
        let text = std::fs::read_to_string(&path)
            .map_err(|source| ConfigError::Read { path: path.clone(), source })?;
        // Typed first, so that an error names its own file and line.
        toml::from_str::<Config>(&text).map_err(|e| invalid(&path, &text, &e))?;
        let table = text.parse::<toml::Table>().map_err(|e| invalid(&path, &text, &e))?;
        merge(&mut merged, table);
    }
    let config: Config = merged.try_into().map_err(|e| invalid(file, "", &e))?;
    check(&config)?;
    Ok(config)
}

fn drop_ins(file: &Path) -> Result<Vec<PathBuf>, ConfigError> {
    let mut name = file.as_os_str().to_owned();
    name.push(DROP_IN_SUFFIX);
    let dir = PathBuf::from(name);
    let entries = match std::fs::read_dir(&dir) {
        Ok(entries) => entries,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(source) => return Err(ConfigError::Read { path: dir, source }),
    };
    let mut paths = Vec::new();
    for entry in entries {
        let path = entry.map_err(|source| ConfigError::Read { path: dir.clone(), source })?.path();
        if path.extension().is_some_and(|e| e == "toml") {
            paths.push(path);
        }
    }
    paths.sort();
    Ok(paths)
}

fn merge(into: &mut toml::Table, from: toml::Table) {
    for (key, value) in from {
        match (into.get_mut(&key), value) {
            (Some(toml::Value::Table(old)), toml::Value::Table(new)) => merge(old, new),
            (_, value) => {
                into.insert(key, value);
            }
        }
    }
}

fn invalid(path: &Path, text: &str, error: &toml::de::Error) -> ConfigError {
    let line = error.span().map_or(1, |span| text[..span.start.min(text.len())].matches('\n').count() + 1);
    let message = error.message().to_owned();
    ConfigError::Invalid { path: path.to_owned(), line, hint: suggestion(&message), message }
}

/// Finds the nearest name in serde's "unknown field `x`, expected one of `a`, `b`".
fn suggestion(message: &str) -> String {
    let mut names = message.split('`').skip(1).step_by(2);
    let Some(unknown) = names.next().filter(|_| message.starts_with("unknown")) else {
        return String::new();
    };
    // Beyond three edits a guess misleads more than it helps.
    names
        .map(|name| (strsim::damerau_levenshtein(unknown, name), name))
        .filter(|(distance, _)| *distance <= 3)
        .min()
        .map_or_else(String::new, |(_, name)| format!("; did you mean `{name}`?"))
}

fn check(config: &Config) -> Result<(), ConfigError> {
    let value = |key, message: String| Err(ConfigError::Value { key, message });
    for (key, path) in [
        ("root", &config.root),
        ("state", &config.state),
        ("grpc.socket", &config.grpc.socket),
        ("network.conf_dir", &config.network.conf_dir),
        ("network.cache_dir", &config.network.cache_dir),
        ("network.netns_dir", &config.network.netns_dir),
    ] {
        if !path.is_absolute() {
            return value(key, format!("{} is not an absolute path", path.display()));
        }
    }
    if socket_mode(config).is_none() {
        let mode = &config.grpc.socket_mode;
        return value("grpc.socket_mode", format!("{mode:?} is not an octal mode such as \"0660\""));
    }
    if !config.runtime.default.is_empty() && !config.runtime.handlers.contains_key(&config.runtime.default) {
        return value("runtime.default", format!("no [runtime.handlers.{}]", config.runtime.default));
    }
    if config.images.max_concurrent_downloads == 0 {
        return value(
            "images.max_concurrent_downloads",
            "0 would never pull anything; use at least 1".into(),
        );
    }
    if let Some(path) = config.images.auth_files.iter().find(|path| !path.is_absolute()) {
        return value("images.auth_files", format!("{} is not an absolute path", path.display()));
    }
    for (key, path) in [
        ("images.registries_conf", &config.images.registries_conf),
        ("images.signature_policy", &config.images.signature_policy),
        ("network.conf_template", &config.network.conf_template),
        ("containers.blockio_config_file", &config.containers.blockio_config_file),
    ] {
        if !path.as_os_str().is_empty() && !path.is_absolute() {
            return value(key, format!("{} is not an absolute path", path.display()));
        }
    }
    for limit in &config.containers.default_ulimits {
        if let Err(problem) = super::Ulimit::parse(limit) {
            return value("containers.default_ulimits", problem);
        }
    }
    for handler in config.runtime.handlers.values() {
        for (key, patterns) in [
            ("runtime.handlers.NAME.pod_annotations", &handler.pod_annotations),
            ("runtime.handlers.NAME.container_annotations", &handler.container_annotations),
        ] {
            if let Some(wrong) = patterns.iter().find(|p| !super::limits::is_annotation_pattern(p)) {
                return value(
                    key,
                    format!("{wrong:?} is neither a name nor the start of one with a * at its end"),
                );
            }
        }
    }
    if config.containers.log_line_bytes < 512 {
        return value("containers.log_line_bytes", "must be at least 512".into());
    }
    if config.containers.host_path_seconds == 0 {
        return value("containers.host_path_seconds", "must be at least 1".into());
    }
    if config.containers.exec_memory_bytes < 1 << 20 {
        return value("containers.exec_memory_bytes", "must be at least 1048576".into());
    }
    if config.containers.usage_period_seconds == 0 {
        return value("containers.usage_period_seconds", "must be at least 1".into());
    }
    let (first, count) = (config.containers.project_id_first, config.containers.project_id_count);
    // 0 is the project of what has none, and the last id is no id.
    if first == 0 || first.checked_add(count).is_none() {
        return value("containers.project_id_first", format!("{count} ids from {first} on are not all ids"));
    }
    let streaming = &config.streaming;
    if streaming.address.parse::<std::net::SocketAddr>().is_err() {
        return value(
            "streaming.address",
            format!("{:?} is not an IP address with a port", streaming.address),
        );
    }
    if streaming.cert_file.as_os_str().is_empty() != streaming.key_file.as_os_str().is_empty() {
        return value("streaming.cert_file", "certificate and key go together".into());
    }
    if streaming.max_sessions == 0 {
        return value("streaming.max_sessions", "0 would serve nobody; use at least 1".into());
    }
    for (key, seconds) in [
        ("streaming.handshake_timeout_seconds", streaming.handshake_timeout_seconds),
        ("streaming.creation_timeout_seconds", streaming.creation_timeout_seconds),
        ("streaming.idle_timeout_seconds", streaming.idle_timeout_seconds),
    ] {
        if seconds == 0 {
            return value(key, "must be at least 1".into());
        }
    }
    let parent = &config.cgroups.default_parent;
    if !parent.is_empty() && !parent.starts_with('/') && !parent.ends_with(".slice") {
        return value("cgroups.default_parent", "must start with / or be the name of a slice".into());
    }
    Ok(())
}

fn socket_mode(config: &Config) -> Option<u32> {
    u32::from_str_radix(&config.grpc.socket_mode, 8).ok().filter(|mode| *mode <= 0o777)
}

impl Config {
    /// The CRI socket's mode bits.
    #[must_use]
    pub fn socket_mode(&self) -> u32 {
        socket_mode(self).unwrap_or(0o660)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(dir: &Path, name: &str, text: &str) -> PathBuf {
        let path = dir.join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, text).unwrap();
        path
    }

    #[test]
    fn an_absent_default_file_gives_the_defaults() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(load(&dir.path().join("config.toml"), false).unwrap(), Config::default());
    }

    #[test]
    fn an_absent_named_file_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let error = load(&dir.path().join("config.toml"), true).unwrap_err();
        assert!(error.to_string().contains("config.toml"), "{error}");
    }

    #[test]
    fn an_unknown_key_is_told_with_file_line_and_suggestion() {
        let dir = tempfile::tempdir().unwrap();
        let file = write(dir.path(), "config.toml", "root = \"/r\"\n[network]\nconfdir = \"/x\"\n");
        let error = load(&file, true).unwrap_err().to_string();
        assert!(error.contains("config.toml:3:") && error.contains("did you mean `conf_dir`?"), "{error}");
    }

    #[test]
    fn a_wrong_kind_is_told_with_its_line() {
        let dir = tempfile::tempdir().unwrap();
        let file = write(dir.path(), "config.toml", "\n[images]\nmax_concurrent_downloads = \"many\"\n");
        let error = load(&file, true).unwrap_err().to_string();
        assert!(error.contains("config.toml:3:"), "{error}");
    }

    #[test]
    fn drop_ins_override_in_byte_order_and_keep_the_rest() {
        let dir = tempfile::tempdir().unwrap();
        let file = write(dir.path(), "config.toml", "root = \"/a\"\n[metrics]\naddress = \"\"\n");
        write(dir.path(), "config.toml.d/20.toml", "root = \"/c\"\n");
        write(dir.path(), "config.toml.d/10.toml", "root = \"/b\"\nstate = \"/s\"\n");
        write(dir.path(), "config.toml.d/readme.txt", "not toml");
        let config = load(&file, true).unwrap();
        assert_eq!(
            (config.root.to_str(), config.state.to_str(), config.metrics.address.as_str()),
            (Some("/c"), Some("/s"), "")
        );
    }

    #[test]
    fn an_error_in_a_drop_in_names_the_drop_in() {
        let dir = tempfile::tempdir().unwrap();
        let file = write(dir.path(), "config.toml", "");
        write(dir.path(), "config.toml.d/10.toml", "rot = \"/b\"\n");
        let error = load(&file, true).unwrap_err().to_string();
        assert!(error.contains("10.toml:1:") && error.contains("did you mean `root`?"), "{error}");
    }

    #[test]
    fn values_out_of_range_name_the_key() {
        let dir = tempfile::tempdir().unwrap();
        for (text, key) in [
            ("root = \"relative\"", "root"),
            ("[grpc]\nsocket_mode = \"rw\"", "grpc.socket_mode"),
            ("[runtime]\ndefault = \"nope\"", "runtime.default"),
            ("[images]\nmax_concurrent_downloads = 0", "images.max_concurrent_downloads"),
            ("[images]\nregistries_conf = \"registries.conf\"", "images.registries_conf"),
            ("[images]\nsignature_policy = \"policy.toml\"", "images.signature_policy"),
            ("[images]\nauth_files = [\"auth.json\"]", "images.auth_files"),
            ("[containers]\ndefault_ulimits = [\"nofile=2:1\"]", "containers.default_ulimits"),
            ("[runtime.handlers.runc]\npod_annotations = [\"a*b\"]", "pod_annotations"),
            ("[streaming]\naddress = \"localhost\"", "streaming.address"),
            ("[streaming]\ncert_file = \"/c\"", "streaming.cert_file"),
            ("[streaming]\nmax_sessions = 0", "streaming.max_sessions"),
            ("[streaming]\nidle_timeout_seconds = 0", "streaming.idle_timeout_seconds"),
        ] {
            let file = write(dir.path(), "config.toml", text);
            let error = load(&file, true).unwrap_err().to_string();
            assert!(error.contains(key), "{text}: {error}");
        }
    }
}
