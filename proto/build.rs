//! Compiles the protos with protox (no protoc) and keeps the descriptor set for server reflection.

use std::{env, error::Error, fs, path::PathBuf};

use prost::Message;

const FILES: &[&str] =
    &["nexus/usage/v1/usage.proto", "nexus/billing/v1/billing.proto", "nexus/analytics/v1/analytics.proto"];

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=nexus");
    let descriptors = protox::compile(FILES, ["."])?;
    let out = PathBuf::from(env::var("OUT_DIR")?);
    fs::write(out.join("nexus.bin"), descriptors.encode_to_vec())?;
    tonic_prost_build::configure().codec_path("crate::codec::BoundedCodec").compile_fds(descriptors)?;
    Ok(())
}
