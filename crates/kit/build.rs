//! A migration that is added is built in, too: the macro that does it tells cargo of those alone that were there.

fn main() {
    println!("cargo:rerun-if-changed=../../migrations");
}
