//! CreateContainer: a ContainerConfig into a [`ContainerSpec`].

use super::mounts::{cdi_devices, devices, mounts};
use super::resources::{check_resources, resources};
use super::security::{check_same_user_namespace, container_security};
use super::{Checked, MAX_PATH, invalid, metadata, name, relative_path, shown};
use crate::cri::proto as pb;
use crate::model::{ContainerId, ContainerSpec, ImageRequest, SandboxSpec, Timestamp};

/// CreateContainer. The caller has resolved `image`, since only the image store can.
///
/// # Errors
/// Names the field that is wrong.
pub fn container(
    config: pb::ContainerConfig,
    pod: &SandboxSpec,
    image: ImageRequest,
    id: ContainerId,
    created_at: Timestamp,
) -> Checked<ContainerSpec> {
    let Some(names) = config.metadata else { return invalid("config.metadata", "is missing") };
    let linux = config.linux.unwrap_or_default();
    let log_path = match (&pod.log_directory, config.log_path.as_str()) {
        (None, _) | (_, "") => None,
        (Some(dir), relative) => Some(dir.join(relative_path("config.log_path", relative)?)),
    };
    let security = container_security(linux.security_context.unwrap_or_default())?;
    check_same_user_namespace(&pod.namespaces, &security.namespaces)?;
    Ok(ContainerSpec {
        id,
        sandbox_id: pod.id.clone(),
        name: name("config.metadata.name", &names.name)?,
        attempt: names.attempt,
        created_at,
        image,
        command: without_nul("config.command", config.command)?,
        args: without_nul("config.args", config.args)?,
        working_dir: working_dir(config.working_dir)?,
        envs: envs(config.envs)?,
        mounts: mounts(config.mounts)?,
        devices: devices(config.devices)?,
        cdi_devices: cdi_devices(&config.cdi_devices, &config.annotations)?,
        labels: metadata("config.labels", config.labels)?,
        annotations: metadata("config.annotations", config.annotations)?,
        log_path,
        stdin: config.stdin,
        stdin_once: config.stdin_once,
        tty: config.tty,
        resources: check_resources(linux.resources.map(resources).unwrap_or_default())?,
        security,
        stop_signal: stop_signal(config.stop_signal)?,
        restore: None,
    })
}

fn working_dir(dir: String) -> Checked<String> {
    if dir.contains('\0') || dir.len() > MAX_PATH {
        return invalid("config.working_dir", format!("{:?} has a NUL byte or is too long", shown(&dir)));
    }
    Ok(dir)
}

pub(super) fn without_nul(field: &'static str, words: Vec<String>) -> Checked<Vec<String>> {
    match words.iter().find(|w| w.contains('\0')) {
        Some(word) => invalid(field, format!("{:?} has a NUL byte", shown(word))),
        None => Ok(words),
    }
}

fn envs(envs: Vec<pb::KeyValue>) -> Checked<Vec<(String, String)>> {
    const FIELD: &str = "config.envs";
    envs.into_iter()
        .map(|kv| {
            let value = match String::from_utf8(kv.value) {
                Ok(value) => value,
                Err(_) => return invalid(FIELD, format!("the value of {:?} is not UTF-8", kv.key)),
            };
            if kv.key.is_empty() || kv.key.contains(['=', '\0', '\n']) || value.contains('\0') {
                return invalid(FIELD, format!("{:?} is no environment variable", shown(&kv.key)));
            }
            // Programs write it into passwd files, line by line (CVE-2022-4318).
            if kv.key == "HOME" && value.contains(['\n', '\r']) {
                return invalid(FIELD, "HOME has a line break");
            }
            Ok((kv.key, value))
        })
        .collect()
}

/// CRI's signal to Linux's number; None: the runtime's default.
fn stop_signal(signal: i32) -> Checked<Option<i32>> {
    let Ok(signal) = pb::Signal::try_from(signal) else {
        return invalid("config.stop_signal", format!("{signal} is unknown"));
    };
    let name = signal.as_str_name().trim_start_matches("SIGNAL_");
    if signal == pb::Signal::RuntimeDefault {
        return Ok(None);
    }
    match crate::host::oci::signal_number(&name.replace("PLUS", "+").replace("MINUS", "-")) {
        Some(number) => Ok(Some(number)),
        None => invalid("config.stop_signal", format!("{name} is not known on Linux")),
    }
}
