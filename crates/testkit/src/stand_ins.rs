//! Stand-ins for the images that the conformance suite and `make run` name.
//!
//! Owns what each image contains and the names under which it is pushed; the table with the specs that need them is
//! `tests/critest/images.md`. A stand-in does what its specs need and no more.

use anyhow::Result;

use crate::image::{Artifact, Compression, Entry, Format, Image, ImageBuilder, Index, Layer, LayerBuilder};
use crate::programs::Programs;

/// An image and the names (repository, tag) it is pushed under.
#[derive(Debug, Clone)]
pub struct StandIn {
    /// Repository path and tag, without a host: every host leads to the same loopback registry.
    pub names: Vec<(String, String)>,
    /// The pushed image.
    pub artifact: Artifact,
}

/// Which images to push.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Set {
    /// Everything that critest v1.36.0 names.
    Critest,
    /// busybox, a web server and pause under `docker.io/podwright/`, for `make run`.
    Web,
}

/// Accounts of the busybox image that Docker's library publishes.
const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh
daemon:x:1:1:daemon:/usr/sbin:/bin/false
bin:x:2:2:bin:/bin:/bin/false
sys:x:3:3:sys:/dev:/bin/false
sync:x:4:100:sync:/bin:/bin/sync
mail:x:8:8:mail:/var/spool/mail:/bin/false
www-data:x:33:33:www-data:/var/www:/bin/false
operator:x:37:37:Operator:/var:/bin/false
nobody:x:65534:65534:nobody:/home:/bin/false
";

const GROUP: &str = "root:x:0:
daemon:x:1:
bin:x:2:
sys:x:3:
adm:x:4:
tty:x:5:
disk:x:6:
wheel:x:10:root
mail:x:8:
utmp:x:43:
staff:x:50:
www-data:x:33:
users:x:100:
nogroup:x:65534:
";

const PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The layers that several images share.
struct Layers {
    busybox: Layer,
    nginx: Layer,
    nginx_index: Layer,
    httpd: Layer,
    pause: Layer,
    nnp: Layer,
    predefined_group: Layer,
    dummy: Layer,
}

/// Builds all images of a set.
///
/// # Errors
/// Fails when a layer cannot be encoded.
pub fn build(set: Set, programs: &Programs) -> Result<Vec<StandIn>> {
    let layers = Layers::new(programs)?;
    match set {
        Set::Critest => critest(&layers),
        Set::Web => Ok(web(&layers)),
    }
}

impl Layers {
    fn new(programs: &Programs) -> Result<Self> {
        let pidfile_dir = || [Entry::dir("run"), Entry::dir("var"), Entry::symlink("var/run", "/run")];
        let server = |path: &str| Entry::file(path, programs.webserver.clone()).mode(0o755);
        let accounts = |passwd: &str, group: &str| {
            LayerBuilder::new()
                .entry(Entry::dir("etc"))
                .entry(Entry::file("etc/passwd", PASSWD.bytes().chain(passwd.bytes()).collect::<Vec<_>>()))
                .entry(Entry::file("etc/group", GROUP.bytes().chain(group.bytes()).collect::<Vec<_>>()))
        };
        Ok(Self {
            busybox: busybox(programs).build(Compression::Gzip)?,
            nginx: LayerBuilder::new()
                .entries(pidfile_dir())
                .entries([Entry::dir("usr"), Entry::dir("usr/sbin"), server("usr/sbin/nginx")])
                .build(Compression::Gzip)?,
            nginx_index: LayerBuilder::new()
                .entries(["usr", "usr/share", "usr/share/nginx", "usr/share/nginx/html"].map(Entry::dir))
                .entry(Entry::file(
                    "usr/share/nginx/html/index.html",
                    *b"<!DOCTYPE html><html><head><title>Welcome to nginx!</title></head>\
                       <body><h1>Welcome to nginx!</h1></body></html>\n",
                ))
                .build(Compression::Gzip)?,
            httpd: LayerBuilder::new()
                .entries(["usr", "usr/local", "usr/local/bin"].map(Entry::dir))
                .entry(server("usr/local/bin/httpd"))
                .build(Compression::Gzip)?,
            pause: LayerBuilder::new()
                .entry(Entry::file("pause", programs.pause.clone()).mode(0o755))
                .build(Compression::Gzip)?,
            nnp: LayerBuilder::new()
                .entry(Entry::file("nnp", programs.nnp.clone()).mode(0o4755))
                .build(Compression::Zstd)?,
            predefined_group: accounts(
                "default-user:x:1000:1000:Linux User,,,:/home/default-user:/bin/sh\n",
                "default-user:x:1000:\ngroup-defined-in-image:x:50000:default-user\n",
            )
            .entries([Entry::dir("home"), Entry::dir("home/default-user").owner(1000, 1000)])
            .build(Compression::Zstd)?,
            dummy: LayerBuilder::new()
                .entry(Entry::file("wrong-platform", *b"an index entry that nobody should pull\n"))
                .build(Compression::Gzip)?,
        })
    }

    /// An image of another platform, so that resolving an index means choosing.
    fn other_platform(&self, format: Format) -> Image {
        ImageBuilder::new().format(format).architecture("arm64").layer(&self.dummy).build()
    }

    /// `image` behind an index in which it is not the first.
    fn indexed(&self, format: Format, image: Image) -> Artifact {
        Index::new(format, vec![self.other_platform(format), image]).into()
    }

    fn shell(&self, format: Format) -> ImageBuilder {
        ImageBuilder::new().format(format).layer(&self.busybox).env(&[PATH]).cmd(&["sh"])
    }

    /// The content of busybox-based test images: busybox and one file of their own.
    fn test_image(&self, file: &str, compression: Compression) -> Result<ImageBuilder> {
        let own = LayerBuilder::new().entry(Entry::file(file, [])).build(compression)?;
        let format = if compression == Compression::Zstd { Format::Oci } else { Format::Docker };
        Ok(self.shell(format).layer(&own))
    }

    fn nginx(&self, format: Format, port: u16) -> ImageBuilder {
        let image = ImageBuilder::new()
            .format(format)
            .layer(&self.busybox)
            .layer(&self.nginx)
            .layer(&self.nginx_index)
            .env(&[PATH, "NGINX_VERSION=1.14"])
            .exposes(&format!("{port}/tcp"))
            .stop_signal("SIGTERM");
        if port == 80 {
            image.cmd(&["nginx", "-g", "daemon off;"])
        } else {
            image.cmd(&["nginx", "-p", &port.to_string()])
        }
    }

    fn pause(&self) -> Artifact {
        let image = ImageBuilder::new().layer(&self.pause).entrypoint(&["/pause"]).user("65535:65535");
        self.indexed(Format::Oci, image.build())
    }
}

/// busybox with every applet as a hard link: masking `/bin/ls` must not mask the rest.
fn busybox(programs: &Programs) -> LayerBuilder {
    let dirs =
        ["bin", "dev", "etc", "home", "proc", "root", "run", "sbin", "sys", "usr", "usr/bin", "usr/sbin"];
    let mut applets = programs.applets.clone();
    applets.sort_unstable();
    LayerBuilder::new()
        .entries(dirs.map(Entry::dir))
        .entries([
            Entry::dir("tmp").mode(0o1777),
            Entry::dir("var"),
            Entry::dir("var/www"),
            Entry::dir("var/tmp").mode(0o1777),
        ])
        .entry(Entry::symlink("var/run", "/run"))
        .entry(Entry::file("etc/passwd", PASSWD.as_bytes()))
        .entry(Entry::file("etc/group", GROUP.as_bytes()))
        .entry(Entry::file("bin/busybox", programs.busybox.clone()).mode(0o755))
        .entries(
            applets
                .iter()
                .filter(|path| {
                    *path != "bin/busybox"
                        && (path.starts_with("bin/") || path.starts_with("sbin/") || path.starts_with("usr/"))
                })
                .map(|path| Entry::hard_link(path, "bin/busybox")),
        )
}

fn named(names: &[&str], artifact: impl Into<Artifact>) -> StandIn {
    let names = names
        .iter()
        .map(|name| name.split_once(':').unwrap_or((name, "latest")))
        .map(|(repository, tag)| (repository.to_owned(), tag.to_owned()))
        .collect();
    StandIn { names, artifact: artifact.into() }
}

fn critest(layers: &Layers) -> Result<Vec<StandIn>> {
    let mut images = vec![
        named(
            &["e2e-test-images/busybox:1.29-2"],
            layers.indexed(Format::Oci, layers.shell(Format::Oci).build()),
        ),
        named(
            &["e2e-test-images/nginx:1.14-2"],
            layers.indexed(Format::Docker, layers.nginx(Format::Docker, 80).build()),
        ),
        named(
            &[
                "k8s-staging-cri-tools/hostnet-nginx-amd64:latest",
                "k8s-staging-cri-tools/hostnet-nginx-arm64:latest",
            ],
            layers.nginx(Format::Docker, 12003).build(),
        ),
        named(
            &["e2e-test-images/httpd:2.4.39-4"],
            layers.shell(Format::Docker).layer(&layers.httpd).exposes("80/tcp").cmd(&["httpd"]).build(),
        ),
        named(
            &["e2e-test-images/nonewprivs:1.3"],
            ImageBuilder::new().layer(&layers.busybox).layer(&layers.nnp).entrypoint(&["/nnp"]).build(),
        ),
        named(&["pause:3.9"], layers.pause()),
        named(
            &["k8s-staging-cri-tools/test-image-predefined-group:latest"],
            layers.indexed(
                Format::Oci,
                layers.shell(Format::Oci).layer(&layers.predefined_group).user("1000").build(),
            ),
        ),
    ];
    for (name, user) in [
        ("uid", "1002"),
        ("username", "www-data"),
        ("uid-group", "1003:1004"),
        ("username-group", "www-data:1004"),
    ] {
        let image = layers.shell(Format::Docker).user(user).build();
        images.push(named(&[&format!("k8s-staging-cri-tools/test-image-user-{name}:latest")], image));
    }
    let plain = |names: &[&str], file: &str, compression| -> Result<StandIn> {
        let names: Vec<String> = names.iter().map(|n| format!("k8s-staging-cri-tools/{n}")).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        Ok(named(&names, layers.test_image(file, compression)?.build()))
    };
    images.push(plain(&["test-image-1:latest"], "test-image-1", Compression::Gzip)?);
    images.push(plain(&["test-image-2:latest"], "test-image-2", Compression::Zstd)?);
    images.push(plain(&["test-image-3:latest"], "test-image-3", Compression::None)?);
    images.push(plain(
        &["test-image-tags:1", "test-image-tags:2", "test-image-tags:3"],
        "same-image",
        Compression::Gzip,
    )?);
    images.push(plain(&["test-image-latest:latest"], "test-image-latest", Compression::Zstd)?);
    images.push(plain(&["test-image-digest:latest"], "test-image-digest", Compression::Gzip)?);
    for tag in ["test", "all"] {
        let image = layers.test_image(tag, Compression::Gzip)?.build();
        images.push(named(
            &[&format!("k8s-staging-cri-tools/test-image-tag:{tag}")],
            layers.indexed(Format::Docker, image),
        ));
    }
    Ok(images)
}

fn web(layers: &Layers) -> Vec<StandIn> {
    vec![
        named(&["podwright/busybox:latest"], layers.indexed(Format::Oci, layers.shell(Format::Oci).build())),
        named(&["podwright/web:latest"], layers.indexed(Format::Oci, layers.nginx(Format::Oci, 80).build())),
        named(&["pause:3.9"], layers.pause()),
    ]
}
