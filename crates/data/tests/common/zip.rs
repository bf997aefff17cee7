//! Zip archives for tests, of this crate's parser and of others.

/// An archive as `zip` writes it, with a comment; every other member is deflated.
pub fn zip_of(members: &[(&str, &[u8])]) -> Vec<u8> {
    let (mut bytes, mut directory) = (Vec::new(), Vec::new());
    for (number, (name, content)) in members.iter().enumerate() {
        let deflated = number % 2 == 1;
        let packed = if deflated { deflate(content) } else { content.to_vec() };
        let header = bytes.len() as u32;
        // Version, flags, method, time and date, checksum, sizes, lengths of name and extra field.
        let mut common = [20_u16, 0, u16::from(deflated) * 8, 0, 0, 0, 0].map(u16::to_le_bytes).concat();
        common.extend([packed.len() as u32, content.len() as u32].map(u32::to_le_bytes).concat());
        common.extend([name.len() as u16, 0].map(u16::to_le_bytes).concat());
        bytes.extend([b"PK\x03\x04", &common[..], name.as_bytes(), &packed].concat());
        directory.extend([b"PK\x01\x02\x14\0", &common[..], &[0; 10]].concat());
        directory.extend([&header.to_le_bytes()[..], name.as_bytes()].concat());
    }
    let (n, size, offset) = (members.len() as u16, directory.len() as u32, bytes.len() as u32);
    bytes.extend(directory);
    bytes.extend([b"PK\x05\x06\0\0\0\0", &n.to_le_bytes()[..], &n.to_le_bytes()].concat());
    bytes.extend([&size.to_le_bytes()[..], &offset.to_le_bytes(), &[4, 0], b"note"].concat());
    bytes
}

fn deflate(bytes: &[u8]) -> Vec<u8> {
    let mut packed = vec![0; bytes.len() + 64];
    let mut deflate = flate2::Compress::new(flate2::Compression::fast(), false);
    // There is room for what does not get smaller.
    let _ = deflate.compress(bytes, &mut packed, flate2::FlushCompress::Finish);
    packed.truncate(deflate.total_out() as usize);
    packed
}
