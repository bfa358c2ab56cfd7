//! Mounts of host paths: options, paths that are missing, recursive read-only; and ambient capabilities, which no
//! other runtime gives.

use crate::support::*;
use podwright::cri::proto as pb;
use podwright_testkit::Options;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use tonic::Code;

fn mount(host: &Path, at: &str) -> pb::Mount {
    pb::Mount {
        host_path: host.to_string_lossy().into_owned(),
        container_path: at.to_owned(),
        ..Default::default()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn mount_options_are_obeyed() {
    let mut node = Node::with_busybox().await;
    let config = node.pod("options");
    let pod = node.run(&config).await.unwrap();
    let dir = node.scratch.root().join("volume");
    std::fs::create_dir(&dir).unwrap();
    let script = dir.join("script");
    std::fs::write(&script, "#!/bin/sh\necho ran\n").unwrap();
    std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o4755)).unwrap();
    let mut spec = container("main", &[]);
    let options = words(&["noexec", "nosuid", "nodev"]);
    spec.mounts = vec![mount(&dir, "/plain"), pb::Mount { mount_options: options, ..mount(&dir, "/bound") }];
    let id = node.create(&pod, &config, spec).await.unwrap();
    node.start(&id).await.unwrap();
    assert_eq!(node.output(&id, &["/plain/script"]).await, "ran");
    assert_ne!(node.exec(&id, &["sh", "-c", "/bound/script"]).await.unwrap().exit_code, 0);
    let mounts = node.output(&id, &["cat", "/proc/mounts"]).await;
    let bound = mounts.lines().find(|l| l.contains(" /bound ")).unwrap();
    for option in ["rw", "nosuid", "nodev", "noexec"] {
        assert!(bound.split([' ', ',']).any(|word| word == option), "{option}: {bound}");
    }
    let features =
        node.runtime.status(pb::StatusRequest::default()).await.unwrap().into_inner().features.unwrap();
    assert!(features.mount_options);
    node.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_host_path_becomes_a_directory_where_it_can() {
    let must_exist = tempfile::tempdir().unwrap().path().join("must");
    let extra_config = format!("[containers]\nabsent_mount_sources_to_reject = [{must_exist:?}]\n");
    let mut node = Node::new(Options { extra_config, ..Default::default() }).await;
    node.pull(BUSYBOX).await.unwrap();
    let config = node.pod("missing");
    let pod = node.run(&config).await.unwrap();
    let root = node.scratch.root().join("volumes");
    let missing = root.join("a/b");
    let mut spec = container("main", &[]);
    spec.mounts = vec![mount(&missing, "/data")];
    let id = node.create(&pod, &config, spec).await.unwrap();
    node.start(&id).await.unwrap();
    node.output(&id, &["touch", "/data/file"]).await;
    assert!(missing.join("file").exists());
    assert_eq!(std::fs::metadata(&missing).unwrap().permissions().mode() & 0o7777, 0o755);
    std::fs::write(root.join("file"), "").unwrap();
    std::os::unix::fs::symlink("/no/such/target", root.join("dead")).unwrap();
    for (name, path) in [("below", root.join("file/x")), ("dead", root.join("dead")), ("must", must_exist)] {
        let mut spec = container(name, &[]);
        spec.mounts = vec![mount(&path, "/data")];
        let refusal = node.create(&pod, &config, spec).await;
        refused(refusal, Code::InvalidArgument, &["/data", &path.to_string_lossy()]);
    }
    assert!(!Path::new("/no/such/target").exists());
    assert_eq!(node.list_containers().await.len(), 1);
    node.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_kubelet_parses_stands_first_in_the_message() {
    let mut node = Node::with_busybox().await;
    let config = node.pod("words");
    let pod = node.run(&config).await.unwrap();
    let dir = node.scratch.root().to_owned();
    let rro = |edit: fn(&mut pb::Mount)| {
        let mut asked = pb::Mount { readonly: true, recursive_read_only: true, ..mount(&dir, "/rro") };
        edit(&mut asked);
        asked
    };
    let image = |edit: fn(&mut pb::Mount)| {
        let image = Some(image_spec(BUSYBOX));
        let mut asked =
            pb::Mount { image, readonly: true, container_path: "/i".into(), ..Default::default() };
        edit(&mut asked);
        asked
    };
    for (word, code, mount) in [
        ("RROUnsupported", Code::InvalidArgument, rro(|m| m.readonly = false)),
        (
            "RROUnsupported",
            Code::InvalidArgument,
            rro(|m| m.propagation = pb::MountPropagation::PropagationHostToContainer.into()),
        ),
        ("ImageVolumeMountFailed", Code::InvalidArgument, image(|m| m.readonly = false)),
        ("ImageVolumeMountFailed", Code::InvalidArgument, image(|m| m.image_sub_path = "no/such".into())),
        (
            "ImageVolumeMountFailed",
            Code::NotFound,
            image(|m| m.image.as_mut().unwrap().image = "docker.io/library/absent:1".into()),
        ),
    ] {
        let mut spec = container("main", &[]);
        spec.mounts = vec![mount];
        let status = node.create(&pod, &config, spec).await.unwrap_err();
        assert_eq!(status.code(), code, "{}", status.message());
        assert!(status.message().starts_with(word), "{}", status.message());
    }
    assert!(node.list_containers().await.is_empty());
    node.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_ambient_capability_reaches_a_user_who_is_not_root() {
    let mut node = Node::with_busybox().await;
    let config = node.pod("ambient");
    let pod = node.run(&config).await.unwrap();
    let user = |name: &str, ambient: &[&str]| {
        let mut spec = container(name, &[]);
        security(&mut spec).run_as_user = Some(pb::Int64Value { value: 1000 });
        security(&mut spec).capabilities = Some(pb::Capability {
            add_capabilities: words(&["NET_ADMIN"]),
            add_ambient_capabilities: words(ambient),
            ..Default::default()
        });
        spec
    };
    let sets = |status: &str| {
        let line = |name: &str| status.lines().find_map(|l| l.strip_prefix(name)).unwrap().trim().to_owned();
        (line("CapEff:"), line("CapAmb:"))
    };
    const NET_ADMIN: &str = "0000000000001000";
    let none = "0".repeat(16);
    for (name, ambient, expected) in
        [("without", &[][..], none.as_str()), ("with", &["NET_ADMIN"][..], NET_ADMIN)]
    {
        let id = node.create(&pod, &config, user(name, ambient)).await.unwrap();
        node.start(&id).await.unwrap();
        for process in ["/proc/1/status", "/proc/self/status"] {
            let status = node.output(&id, &["cat", process]).await;
            assert_eq!(sets(&status), (expected.to_owned(), expected.to_owned()), "{name} {process}");
        }
    }
    node.finish().await;
}
