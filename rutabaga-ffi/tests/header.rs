//! The committed header is what the code says. `HOSTBLOB_BLESS=1` writes it anew.

use std::path::Path;

#[test]
fn the_header_is_that_of_the_code() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let config = cbindgen::Config::from_file(root.join("cbindgen.toml")).unwrap();
    let mut builder = cbindgen::Builder::new().with_config(config);
    for file in ["types", "ffi/device", "ffi/context", "ffi/resource"] {
        builder = builder.with_src(root.join("src").join(file).with_extension("rs"));
    }
    let mut made = Vec::new();
    builder.generate().unwrap().write(&mut made);
    let made = String::from_utf8(made).unwrap();
    let path = root.join("include/rutabaga_gfx/rutabaga_gfx_ffi.h");
    if std::env::var_os("HOSTBLOB_BLESS").is_some() {
        std::fs::write(&path, &made).unwrap();
    }
    let committed = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        committed == made,
        "the header differs from the code: run HOSTBLOB_BLESS=1 cargo test -p hostblob-rutabaga-ffi --test header"
    );
}
