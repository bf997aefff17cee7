//! Checkpoints of version 1: one process, and a queue in place of sections.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::json;
use swav_encoder::StateDict;

use super::file::{OPTIMIZER, verify};
use super::{Checkpoint, RunPosition};
use crate::section::{Section, floats};

const QUEUE: &str = "queue.rows";

#[derive(Serialize, Deserialize)]
struct Header {
    version: u32,
    position: RunPosition,
    config: String,
    data_fingerprint: u64,
    data_description: String,
    queue: Option<QueueHeader>,
    crc32c: u32,
}

#[derive(Serialize, Deserialize)]
struct QueueHeader {
    batch_size: usize,
    filled: Vec<usize>,
}

/// The checkpoint of a header and its tensors.
pub(super) fn read(
    entry: &str,
    views: &[(&str, safetensors::tensor::TensorView<'_>)],
) -> Result<Checkpoint, String> {
    let mut header: Header = serde_json::from_str(entry).map_err(|error| error.to_string())?;
    let written = std::mem::take(&mut header.crc32c);
    verify(&header, views, written)?;
    let (mut state, mut optimizer, mut codes) = (StateDict::new(), StateDict::new(), Section::default());
    for (name, view) in views {
        let tensor = floats(view).ok_or_else(|| format!("tensor {name} is not of 32-bit floats"))?;
        if let Some(name) = name.strip_prefix(OPTIMIZER) {
            optimizer.insert(name, tensor);
        } else if *name == QUEUE {
            codes.tensors.insert(QUEUE, tensor);
        } else {
            state.insert(*name, tensor);
        }
    }
    if header.queue.is_some() == codes.tensors.is_empty() {
        return Err("it has a part of a queue only".to_owned());
    }
    if let Some(queue) = header.queue {
        codes.values.insert("batch_size".to_owned(), json!(queue.batch_size));
        codes.values.insert("filled".to_owned(), json!(queue.filled));
    }
    Ok(Checkpoint {
        position: header.position,
        config: header.config,
        data_fingerprint: header.data_fingerprint,
        data_description: header.data_description,
        world_size: 1,
        state,
        optimizer,
        sections: BTreeMap::from([("codes".to_owned(), vec![codes])]),
    })
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use safetensors::View;
    use swav_encoder::StateTensor;

    use super::super::file::checksum;
    use super::*;
    use crate::section::Floats;

    #[test]
    fn a_file_of_version_1_is_read_with_its_queue() {
        let tensor = |shape: &[usize]| {
            let length = shape.iter().product();
            StateTensor::new(shape.to_vec(), (0..length).map(|i| i as f32).collect()).unwrap()
        };
        let tensors = [
            ("conv1.weight", tensor(&[2, 3])),
            ("optimizer.conv1.weight.first", tensor(&[2, 3])),
            ("prototypes.weight", tensor(&[4, 2])),
            (QUEUE, tensor(&[2, 6, 2])),
        ];
        let mut header = Header {
            version: 1,
            position: RunPosition { epoch: 3, batch: 1, step: 16 },
            config: "[training]\nepochs = 4".to_owned(),
            data_fingerprint: 77,
            data_description: "43 images".to_owned(),
            queue: Some(QueueHeader { batch_size: 3, filled: vec![6, 3] }),
            crc32c: 0,
        };
        header.crc32c = checksum(
            &header,
            tensors.iter().map(|(name, t)| (*name, t.shape(), Floats(t).data().into_owned().into())),
        );
        let text = serde_json::to_string(&header).unwrap();
        let views = tensors.iter().map(|(name, tensor)| (*name, Floats(tensor)));
        let bytes = safetensors::serialize(views, Some(HashMap::from([("swav".to_owned(), text)]))).unwrap();

        let checkpoint = Checkpoint::from_bytes(&bytes, "old.safetensors".as_ref()).unwrap();
        assert_eq!((checkpoint.position.step, checkpoint.world_size), (16, 1));
        assert_eq!(checkpoint.encoder_state().len(), 1);
        assert_eq!(checkpoint.optimizer.get("conv1.weight.first"), Some(&tensors[1].1));
        let [codes] = checkpoint.sections_of("codes") else { panic!("one section") };
        assert_eq!(codes.tensors.get(QUEUE), Some(&tensors[3].1));
        assert_eq!(codes.values["filled"], json!([6, 3]));
    }
}
