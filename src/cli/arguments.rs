//! The command lines of `podwright images`, `podwright status` and `podwright pods`.

use clap::{Args, Subcommand, ValueEnum};
use std::path::PathBuf;

/// Arguments of `podwright images`.
#[derive(Debug, Args)]
pub struct Arguments {
    /// Configuration file of the daemon, to find its socket, or its store while it does not run.
    #[arg(long, value_name = "FILE", global = true)]
    pub(super) config: Option<PathBuf>,
    /// Socket of the daemon instead of the configured one; the daemon must run.
    #[arg(long, value_name = "PATH", global = true, conflicts_with = "config")]
    pub(super) socket: Option<PathBuf>,
    #[command(subcommand)]
    pub(super) command: Command,
}

/// Arguments of `podwright status` and `podwright pods`.
#[derive(Debug, Args)]
pub struct NodeArguments {
    /// Configuration file of the daemon, to find its socket.
    #[arg(long, value_name = "FILE")]
    pub(super) config: Option<PathBuf>,
    /// Socket of the daemon instead of the configured one.
    #[arg(long, value_name = "PATH", conflicts_with = "config")]
    pub(super) socket: Option<PathBuf>,
    /// Form of the answer.
    #[arg(short, long, value_enum, default_value_t = Output::Text)]
    pub(super) output: Output,
}

/// Form of an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Output {
    /// For people.
    Text,
    /// For programs.
    Json,
}

/// Another runtime.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Peer {
    /// containerd, namespace k8s.io.
    Containerd,
    /// CRI-O, podman and buildah.
    Crio,
}

/// Form of an export.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Format {
    /// A tar of an OCI layout.
    Oci,
    /// The format of docker load.
    Docker,
    /// An OCI layout in a new or empty directory.
    OciDir,
}

/// The command.
#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// List images: what they take on disk and how many containers use them.
    Ls {
        /// An id or a part of its beginning, a tag, a digest, or a repository; all images without it.
        name: Option<String>,
        /// Everything, as JSON.
        #[arg(long)]
        json: bool,
        /// Ids only.
        #[arg(short, long, conflicts_with = "json")]
        quiet: bool,
    },
    /// Remove images, each with all its names.
    Rm {
        /// Ids, tags or digests.
        #[arg(required = true, value_name = "NAME")]
        names: Vec<String>,
    },
    /// Pull an image and print its id.
    Pull {
        /// Name with a tag or a digest; without, the tag is latest.
        #[arg(value_name = "REF")]
        reference: String,
        /// User name and password; without a password it prompts for one.
        #[arg(long, value_name = "USER[:PASS]")]
        creds: Option<String>,
        /// Read USER:PASS from standard input.
        #[arg(long, conflicts_with = "creds")]
        creds_stdin: bool,
    },
    /// Load the images of an archive: an OCI layout (directory or tar), or what docker save wrote.
    Load {
        /// A path on this machine; - or none is standard input.
        #[arg(default_value = "-")]
        file: PathBuf,
        /// Name for the image, replacing those in the archive, which must hold one image.
        #[arg(long, value_name = "REF")]
        name: Option<String>,
    },
    /// Import images from another runtime's store on this machine, which may be in use.
    ImportFrom {
        /// The store's owner.
        peer: Peer,
        /// Directory of the store, if not its default.
        #[arg(long, value_name = "DIR")]
        root: Option<PathBuf>,
        /// Tags, digests or ids; all images without them.
        #[arg(value_name = "NAME")]
        names: Vec<String>,
    },
    /// Write images to an archive or a layout.
    Export {
        /// Tags, digests or ids.
        #[arg(required = true, value_name = "NAME")]
        names: Vec<String>,
        /// Destination; - is standard output.
        #[arg(short, long, value_name = "FILE")]
        output: PathBuf,
        /// Form of the output.
        #[arg(long, value_enum, default_value_t = Format::Oci)]
        format: Format,
        /// Compress layers; not in a docker archive.
        #[arg(long)]
        gzip: bool,
    },
    /// Compare images on disk with what was pulled, and fetch damaged parts again.
    Verify {
        /// Ids, tags or digests; all images without them.
        #[arg(value_name = "NAME")]
        names: Vec<String>,
        /// Only report what is damaged.
        #[arg(long)]
        no_repair: bool,
        /// The answer as JSON, at the end.
        #[arg(long)]
        json: bool,
    },
    /// Delete unneeded layers.
    Gc {
        /// Only report what would be deleted.
        #[arg(long)]
        dry_run: bool,
        /// Also images that no container uses and that are not pinned.
        #[arg(long)]
        unused: bool,
        /// The answer as JSON.
        #[arg(long)]
        json: bool,
    },
    /// Show where a pull would go: endpoints in order, their TLS files, credentials and proxy.
    Endpoints {
        /// The image's name.
        #[arg(value_name = "REF")]
        reference: String,
        /// Ask each endpoint for the manifest.
        #[arg(long)]
        probe: bool,
        /// The answer as JSON.
        #[arg(long)]
        json: bool,
    },
}
