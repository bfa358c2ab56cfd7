use super::*;
use std::os::unix::fs::PermissionsExt as _;

fn runtime(name: &str, path: &Path, state: &Path, timeout: Duration) -> Runtime {
    let handler = Handler { path: path.to_owned(), ..Handler::default() };
    Runtime::new(name, &handler, state, timeout)
}

/// A runtime that is a shell script. `$log` is the log file that it was given.
fn scripted(dir: &Path, body: &str, timeout: Duration) -> Runtime {
    let path = dir.join("fake");
    let prelude = "while [ $# -gt 0 ]; do case $1 in --log) log=$2; shift;; esac; last=$1; shift; done";
    std::fs::write(&path, format!("#!/bin/sh\n{prelude}\n{body}\n")).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    runtime("fake", &path, dir, timeout)
}

const LONG: Duration = Duration::from_secs(60);

#[tokio::test]
async fn a_missing_program_is_named_with_the_path() {
    let dir = tempfile::tempdir().unwrap();
    let error = runtime("nope", Path::new(""), dir.path(), LONG).start("x").await.unwrap_err();
    assert!(matches!(&error, OciError::Missing { program, .. } if program == Path::new("nope")), "{error}");
    assert!(error.to_string().contains("PATH="), "{error}");
}

#[tokio::test]
async fn the_words_come_from_the_log_else_from_stderr() {
    let dir = tempfile::tempdir().unwrap();
    let body = r#"echo '{"level":"error","msg":"first"}' >$log; echo '{"level":"error","msg":"the cause"}' >>$log
        echo '{"level":"warning","msg":"w"}' >>$log; echo noise >&2; exit 1"#;
    let error = scripted(dir.path(), body, LONG).start("c1").await.unwrap_err();
    assert_eq!(error.to_string(), "fake start c1: the cause");
    let error = scripted(dir.path(), "echo plain words >&2; exit 3", LONG).start("c1").await.unwrap_err();
    assert_eq!(error.to_string(), "fake start c1: plain words");
    let error = scripted(dir.path(), "exit 3", LONG).start("c1").await.unwrap_err();
    assert!(error.to_string().contains("exit status: 3"), "{error}");
    // No log stays behind.
    assert_eq!(std::fs::read_dir(dir.path().join("runtime/fake.log")).unwrap().count(), 0);
}

#[tokio::test]
async fn a_hanging_program_is_killed_with_its_children() {
    let dir = tempfile::tempdir().unwrap();
    let pid_file = dir.path().join("pid");
    let body = format!("sleep 1000 & echo $! > {}; wait", pid_file.display());
    let error = scripted(dir.path(), &body, Duration::from_secs(1)).start("c1").await.unwrap_err();
    assert!(matches!(error, OciError::Timeout { seconds: 1, .. }), "{error}");
    let child: i32 = std::fs::read_to_string(pid_file).unwrap().trim().parse().unwrap();
    let stat = || std::fs::read_to_string(format!("/proc/{child}/stat")).unwrap_or_default();
    while !(stat().is_empty() || stat().contains(") Z ")) {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn endless_output_is_bounded_and_long_words_are_cut() {
    let dir = tempfile::tempdir().unwrap();
    let body = "head -c 5000000 /dev/zero | tr '\\0' x >&2; exit 1";
    let error = scripted(dir.path(), body, LONG).start("c1").await.unwrap_err();
    assert!(error.to_string().len() < MAX_MESSAGE_BYTES + 100);
}

#[tokio::test]
async fn an_answer_without_sense_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    for body in
        ["", "echo garbage", "echo '{\"id\":\"other\",\"status\":\"running\"}'", "echo '{\"id\":\"c1\"}'"]
    {
        let error = scripted(dir.path(), body, LONG).state("c1").await.unwrap_err();
        assert!(matches!(error, OciError::Answer { .. }), "{body}: {error}");
    }
}

#[tokio::test]
async fn what_is_gone_is_fine_to_kill_and_delete() {
    let dir = tempfile::tempdir().unwrap();
    let body = r#"echo '{"level":"error","msg":"container does not exist"}' >$log; exit 1"#;
    let fake = scripted(dir.path(), body, LONG);
    fake.kill("c1", 9, true).await.unwrap();
    fake.delete("c1", false).await.unwrap();
    assert_eq!(fake.state("c1").await.unwrap(), None);
    assert!(fake.start("c1").await.unwrap_err().is_gone());
}

#[tokio::test]
async fn an_update_goes_to_stdin() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    let fake = scripted(dir.path(), &format!("cat > {}", out.display()), LONG);
    let mut resources = oci_spec::runtime::LinuxResources::default();
    resources.set_pids(Some(oci_spec::runtime::LinuxPidsBuilder::default().limit(7).build().unwrap()));
    fake.update("c1", &resources).await.unwrap();
    assert!(std::fs::read_to_string(out).unwrap().contains("\"limit\":7"));
}

#[tokio::test]
async fn runc_passes_the_probe_and_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let runc = runtime("runc", Path::new(""), dir.path(), LONG);
    assert!(runc.version().await.unwrap().starts_with("runc"));
    runc.probe(dir.path()).await.unwrap();
    let left: Vec<_> = std::fs::read_dir(runc.root()).unwrap().collect();
    assert!(left.is_empty(), "{left:?}");
    assert!(!dir.path().join(format!("podwright-probe-runc-{}", std::process::id())).exists());
    assert_eq!(runc.state("never").await.unwrap(), None);
    runc.delete("never", true).await.unwrap();
}

#[tokio::test]
async fn a_runtime_that_cannot_create_fails_the_probe() {
    let dir = tempfile::tempdir().unwrap();
    let fake = scripted(dir.path(), "exit 0", LONG);
    assert!(matches!(fake.probe(dir.path()).await.unwrap_err(), OciError::Answer { .. }));
}

/// The case that the probe is for: crun 1.8 reports a version and refuses a hybrid host.
#[tokio::test]
async fn the_probe_tells_whether_crun_can_run_here() {
    let dir = tempfile::tempdir().unwrap();
    let crun = runtime("crun", Path::new(""), dir.path(), LONG);
    let version = crun.version().await.unwrap();
    let hybrid =
        crate::host::cgroups::Cgroups::detect().unwrap().mode() == crate::host::cgroups::CgroupMode::Hybrid;
    match crun.probe(dir.path()).await {
        Ok(()) => assert!(!(hybrid && version.contains(" 1.8")), "{version}"),
        Err(e) => assert!(hybrid && e.to_string().contains("hybrid"), "{e}"),
    }
}
