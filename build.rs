//! Compiles `proto/api.proto` with protox (no protoc binary) into `OUT_DIR`, and leaves the descriptor set
//! beside it for the check against k8s.io/cri-api; then our own service, by itself. Does nothing else.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=proto/api.proto");
    let mut compiler = protox::Compiler::new(["proto"])?;
    compiler.include_source_info(true).include_imports(true).open_file("proto/api.proto")?;
    let out = std::path::PathBuf::from(std::env::var("OUT_DIR")?);
    // Encoded by the compiler, because prost's own types would lose the options that they do not know (debug_redact).
    std::fs::write(out.join("cri.fds"), compiler.encode_file_descriptor_set())?;
    tonic_prost_build::configure()
        .build_client(true)
        .build_server(true)
        // Hand-written: their entries are not encoded again for each answer.
        .extern_path(".runtime.v1.ListContainersResponse", "crate::cri::lists::ListContainersResponse")
        .extern_path(".runtime.v1.ListPodSandboxResponse", "crate::cri::lists::ListPodSandboxResponse")
        // Written by hand in `cri::proto`: it must not print secrets.
        .skip_debug([".runtime.v1.AuthConfig"])
        .compile_fds(compiler.file_descriptor_set())?;
    admin()
}

/// The admin services, in a set of their own: the other one is compared with Kubernetes'.
fn admin() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=proto/podwright");
    let set =
        protox::compile(["podwright/admin/v1/admin.proto", "podwright/admin/v1/node.proto"], ["proto"])?;
    tonic_prost_build::configure()
        .build_client(true)
        .build_server(true)
        .skip_debug([".podwright.admin.v1.Credentials"])
        .compile_fds(set)?;
    Ok(())
}
