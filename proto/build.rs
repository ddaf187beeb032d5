//! Compiles every file of `proto/etcd` and `proto/braid` into clients and servers, without a protoc on the machine.
//!
//! 1. The braid files come first, with etcd's messages named by their place in this crate, so that braid's messages may
//!    use them from any module.
//! 2. The etcd files come last: their output replaces whatever step 1 wrote for the packages it only imports.
//!
//! Every `bytes` field is a `bytes::Bytes`: a key or value read from a connection is shared, not copied.

use std::error::Error;
use std::path::{Path, PathBuf};
use std::{env, fs, io};

/// Import root of all files.
const ROOT: &str = "proto";

/// Wire packages of etcd; each is a module of `crate::etcd`.
const ETCD_PACKAGES: [&str; 5] = ["mvccpb", "authpb", "etcdserverpb", "v3lockpb", "v3electionpb"];

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed={ROOT}");
    let braid = proto_files("braid")?;
    if !braid.is_empty() {
        let mut builder = builder();
        for package in ETCD_PACKAGES {
            builder = builder.extern_path(format!(".{package}"), format!("crate::etcd::{package}"));
        }
        builder.compile_fds(protox::compile(braid, [ROOT])?)?;
    }
    let mut etcd = protox::Compiler::new([ROOT])?;
    etcd.include_imports(true).open_files(proto_files("etcd")?)?;
    let descriptors = PathBuf::from(env::var("OUT_DIR")?).join("etcd_descriptors.bin");
    fs::write(descriptors, etcd.encode_file_descriptor_set())?;
    builder().compile_fds(etcd.include_source_info(true).file_descriptor_set())?;
    Ok(())
}

fn builder() -> tonic_prost_build::Builder {
    tonic_prost_build::configure().bytes(".").build_client(true).build_server(true)
}

/// The `.proto` files of one folder under the import root, sorted; none if the folder does not exist.
fn proto_files(folder: &str) -> io::Result<Vec<PathBuf>> {
    let folder = Path::new(ROOT).join(folder);
    if !folder.exists() {
        return Ok(Vec::new());
    }
    let mut files = Vec::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "proto") {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}
