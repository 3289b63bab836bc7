//! Compiles the example's proto with protox: no protoc is needed.

use std::error::Error;

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=proto");
    tonic_prost_build::configure()
        .build_client(false)
        .compile_fds(protox::compile(["reports.proto"], ["proto"])?)?;
    Ok(())
}
