//! Mechanisms of the host, and the only place that runs other programs. Knows no policy of pods or images.

pub mod monitor;
