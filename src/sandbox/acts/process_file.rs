//! The OCI process descriptions of commands in running containers. Each repeats its container's environment, and lies in
//! `state` only until the OCI runtime has started the command; large ones of all pods have a budget, so that they fit what
//! is kept free for them ([`super::room`]).

use super::private::write_private;
use crate::model::{SandboxId, TerminalSize};
use crate::sandbox::offload::OffThread;
use crate::sandbox::spec;
use crate::sandbox::words::error::SandboxError;
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// A description up to this size is ordinary and always written: of as many commands as can be started at once they take
/// some MiB.
const ORDINARY: usize = 8 << 10;
/// What larger ones take at once, all together: a quarter of what is kept free.
const LARGE_BYTES: usize = 8 << 20;
/// The same of one pod. One may be larger, if it is alone.
const POD_BYTES: usize = 1 << 20;

/// Those that lie there now, as far as they are large. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub(in crate::sandbox) struct ProcessFiles(Arc<Mutex<HashMap<SandboxId, usize>>>);

/// The terminal of a command.
pub(in crate::sandbox) enum Terminal {
    No,
    /// With its first size, if there is one.
    Yes(Option<TerminalSize>),
}

/// The description of one command, removed when dropped.
pub(in crate::sandbox) struct ProcessFile {
    path: PathBuf,
    _place: Option<Place>,
}

/// A large one's place in the budget.
struct Place {
    files: ProcessFiles,
    pod: SandboxId,
    bytes: usize,
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = self.files.taken();
        match taken.get_mut(&self.pod) {
            Some(bytes) if *bytes > self.bytes => *bytes -= self.bytes,
            _ => drop(taken.remove(&self.pod)),
        }
    }
}

impl ProcessFiles {
    fn taken(&self) -> MutexGuard<'_, HashMap<SandboxId, usize>> {
        // Every section leaves it whole.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn place(&self, pod: &SandboxId, bytes: usize) -> Result<Option<Place>, SandboxError> {
        if bytes <= ORDINARY {
            return Ok(None);
        }
        let mut taken = self.taken();
        let all: usize = taken.values().sum();
        let own = taken.get(pod).copied().unwrap_or_default();
        for (whose, have, most) in [("this pod", own, POD_BYTES), ("all pods together", all, LARGE_BYTES)] {
            if have > 0 && have.saturating_add(bytes) > most {
                return Err(SandboxError::TooLargeExecs { whose, most });
            }
        }
        taken.insert(pod.clone(), own + bytes);
        drop(taken);
        Ok(Some(Place { files: self.clone(), pod: pod.clone(), bytes }))
    }

    /// Writes the container's own process with other arguments: same user, environment, capabilities and directory.
    pub(in crate::sandbox) fn write(
        &self,
        off: &OffThread,
        pod: &SandboxId,
        bundle: &Path,
        exec_id: &str,
        command: Vec<String>,
        terminal: Terminal,
    ) -> Result<ProcessFile, SandboxError> {
        spec::check_command(&command)?;
        let config = bundle.join("config.json");
        let text = std::fs::read(&config).map_err(SandboxError::io("read", &config))?;
        #[derive(serde::Deserialize)]
        struct Spec {
            process: serde_json::Map<String, serde_json::Value>,
        }
        let spec: Spec = serde_json::from_slice(&text)
            .map_err(|e| SandboxError::io("parse", &config)(std::io::Error::from(e)))?;
        let mut process = spec.process;
        process.insert("args".to_owned(), command.into());
        process.remove("consoleSize");
        match terminal {
            Terminal::No => process.insert("terminal".to_owned(), false.into()),
            Terminal::Yes(size) => {
                if let Some(TerminalSize { columns, rows }) = size {
                    let size = serde_json::json!({"height": rows, "width": columns});
                    process.insert("consoleSize".to_owned(), size);
                }
                name_terminal(&mut process);
                process.insert("terminal".to_owned(), true.into())
            }
        };
        let text = serde_json::Value::Object(process).to_string();
        let place = self.place(pod, text.len())?;
        let file = ProcessFile { path: bundle.join(format!("exec-{exec_id}.json")), _place: place };
        // What was written before there was no room goes with it.
        write_private(off, &file.path, text.as_bytes())?;
        Ok(file)
    }
}

impl ProcessFile {
    pub(in crate::sandbox) fn path(&self) -> String {
        self.path.to_string_lossy().into_owned()
    }
}

/// As for a container with a terminal (`spec::process`), unless the container has a `TERM` of its own.
fn name_terminal(process: &mut serde_json::Map<String, serde_json::Value>) {
    let env = process.entry("env").or_insert_with(|| serde_json::json!([]));
    if let Some(env) = env.as_array_mut()
        && !env.iter().any(|entry| entry.as_str().is_some_and(|text| text.starts_with("TERM=")))
    {
        env.push("TERM=xterm".into());
    }
}

impl Drop for ProcessFile {
    fn drop(&mut self) {
        // It may be gone already with its bundle.
        let _ = std::fs::remove_file(&self.path);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::offload::here;
    use serde_json::{Value, json};

    fn pod() -> SandboxId {
        SandboxId::random().unwrap()
    }

    fn written(config: &Value, terminal: Terminal) -> Value {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("config.json"), config.to_string()).unwrap();
        let command = vec!["ls".into(), "-l".into()];
        let file =
            ProcessFiles::default().write(&here(), &pod(), dir.path(), "e1", command, terminal).unwrap();
        let mode = std::os::unix::fs::PermissionsExt::mode(&file.path.metadata().unwrap().permissions());
        assert_eq!(mode & 0o7777, 0o600, "it has the environment");
        let process = serde_json::from_slice(&std::fs::read(file.path()).unwrap()).unwrap();
        drop(file);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
        process
    }

    #[test]
    fn a_command_is_the_containers_process_but_for_its_arguments_and_terminal() {
        let mut config = json!({"process": {"args": ["sh"], "env": ["A=b"], "user": {"uid": 5, "gid": 6},
            "cwd": "/x", "terminal": true, "consoleSize": {"height": 1, "width": 2}}});
        let plain = written(&config, Terminal::No);
        let expected = json!({"args": ["ls", "-l"], "env": ["A=b"], "user": {"uid": 5, "gid": 6},
            "cwd": "/x", "terminal": false});
        assert_eq!(plain, expected);
        let size = TerminalSize { columns: 97, rows: 31 };
        let with_terminal = written(&config, Terminal::Yes(Some(size)));
        assert_eq!(with_terminal["env"], json!(["A=b", "TERM=xterm"]));
        assert_eq!(with_terminal["consoleSize"], json!({"height": 31, "width": 97}));
        assert_eq!(with_terminal["terminal"], true);
        config["process"]["env"] = json!(["TERM=dumb"]);
        let own = written(&config, Terminal::Yes(None));
        assert_eq!((&own["env"], &own["consoleSize"]), (&json!(["TERM=dumb"]), &Value::Null));
    }

    #[test]
    fn large_ones_have_a_budget_a_pod_and_in_all_and_ordinary_ones_need_none() {
        let files = ProcessFiles::default();
        let (loud, other) = (pod(), pod());
        let half = POD_BYTES / 2;
        let held: Vec<_> = (0..2).map(|_| files.place(&loud, half).unwrap()).collect();
        let refused = files.place(&loud, half).map(|_| ()).unwrap_err();
        assert!(matches!(refused, SandboxError::TooLargeExecs { whose: "this pod", .. }), "{refused}");
        assert!(files.place(&loud, ORDINARY).unwrap().is_none());
        drop(files.place(&other, half).unwrap());
        // One alone may be of any size that a container's environment has.
        let alone = files.place(&other, POD_BYTES * 3).unwrap();
        drop(held);
        let more: Vec<_> = (0..).map_while(|_| files.place(&pod(), POD_BYTES).ok()).collect();
        assert_eq!(more.len(), LARGE_BYTES / POD_BYTES - 3);
        drop((alone, more));
        assert!(files.taken().is_empty());
    }

    #[test]
    fn a_command_that_no_program_could_have_is_refused_before_anything_is_written() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("config.json"), r#"{"process": {}}"#).unwrap();
        let command = vec!["x".repeat(1000); 8000];
        let refused = ProcessFiles::default().write(&here(), &pod(), dir.path(), "e1", command, Terminal::No);
        assert!(matches!(refused.map(|_| ()), Err(SandboxError::Spec(_))));
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}
