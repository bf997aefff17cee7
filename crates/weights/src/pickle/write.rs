//! Writes the pickle of a dictionary of tensors, as PyTorch writes it.

use crate::Dtype;

/// The pickle of `{name: tensor}`; tensor number i is all of the storage with the key `i`.
///
/// It holds what `torch.load(weights_only=True)` allows, and no memory of the pickler: names are repeated.
pub(crate) fn state_dict<'a>(tensors: impl Iterator<Item = (&'a str, Dtype, &'a [usize])>) -> Vec<u8> {
    let mut bytes = vec![0x80, 2];
    global(&mut bytes, "collections", "OrderedDict");
    bytes.extend(b")R(");
    for (index, (name, dtype, shape)) in tensors.enumerate() {
        text(&mut bytes, name);
        global(&mut bytes, "torch._utils", "_rebuild_tensor_v2");
        bytes.extend(b"((");
        text(&mut bytes, "storage");
        let storage = if dtype == Dtype::I64 { "LongStorage" } else { "FloatStorage" };
        global(&mut bytes, "torch", storage);
        text(&mut bytes, &index.to_string());
        text(&mut bytes, "cpu");
        number(&mut bytes, shape.iter().product());
        bytes.extend(b"tQK\0");
        tuple(&mut bytes, shape.iter().copied());
        let strides = (0..shape.len()).map(|axis| shape[axis + 1..].iter().product());
        tuple(&mut bytes, strides);
        // Needs no gradient, has no hooks.
        bytes.push(0x89);
        global(&mut bytes, "collections", "OrderedDict");
        bytes.extend(b")RtR");
    }
    bytes.extend(b"u.");
    bytes
}

fn global(bytes: &mut Vec<u8>, module: &str, name: &str) {
    bytes.extend(format!("c{module}\n{name}\n").as_bytes());
}

fn text(bytes: &mut Vec<u8>, text: &str) {
    bytes.push(b'X');
    bytes.extend((text.len() as u32).to_le_bytes());
    bytes.extend(text.as_bytes());
}

fn number(bytes: &mut Vec<u8>, value: usize) {
    bytes.extend([0x8a, 8]);
    bytes.extend((value as u64).to_le_bytes());
}

fn tuple(bytes: &mut Vec<u8>, values: impl Iterator<Item = usize>) {
    bytes.push(b'(');
    values.for_each(|value| number(bytes, value));
    bytes.push(b't');
}
