//! What is done for pods and containers, one act a file, over the mechanisms of `host` and `images`. Acts know no task, no
//! index and no caller: `life` decides who may have them done, and when.

pub(super) mod adopt;
pub(super) mod bring_up;
pub(super) mod bundle;
pub(super) mod clean;
pub(super) mod creation;
pub(super) mod exec;
pub(super) mod execs;
pub(super) mod files;
pub(super) mod granted;
pub(super) mod handlers;
pub(super) mod idmap;
pub(super) mod launch;
pub(super) mod metrics;
pub(super) mod node;
pub(super) mod output;
pub(super) mod places;
pub(super) mod pod_cgroups;
pub(super) mod private;
pub(super) mod process_file;
pub(super) mod records;
pub(super) mod restore;
pub(super) mod room;
pub(super) mod root_dirs;
pub(super) mod run;
pub(super) mod selinux;
pub(super) mod session;
pub(super) mod sources;
pub(super) mod stop;
pub(super) mod sweep;
pub(super) mod trials;
pub(super) mod volumes;
pub(super) mod writable;
