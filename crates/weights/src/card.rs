//! Model cards: what a file of weights is, where it comes from and how it is loaded, as Markdown with the front matter of
//! Hugging Face.

use std::fmt::Write;

use serde_json::Value;
use swav_encoder::{Arch, EncoderConfig, Head, ResNet, Stem, Variant};

use crate::export::{OnnxOptions, Part, Target};
use crate::preprocessing::Preprocessing;

/// What a card says.
#[derive(Clone, Debug)]
pub struct Card {
    /// Name of the file beside it.
    pub file: String,
    /// What kind of file it is.
    pub target: Target,
    /// How much of the network it has, and how an ONNX file takes images.
    pub options: OnnxOptions,
    /// An SPDX identifier of the weights' licence, if it is known.
    pub license: Option<String>,
    /// The network.
    pub encoder: EncoderConfig,
    /// Trained numbers in the file.
    pub n_parameters: usize,
    /// How images have to be shown.
    pub preprocessing: Preprocessing,
    /// One line about how the weights came about.
    pub origin: String,
    /// The configuration of the training, in TOML.
    pub config: String,
    /// Evaluations, as the folder of a run keeps them: objects with `evaluation` and `results`.
    pub evaluations: Vec<Value>,
}

impl Card {
    /// The card.
    ///
    /// ```
    /// # use swav_weights::{Card, export::{OnnxOptions, Target}};
    /// # let card = Card { file: "w.safetensors".into(), target: Target::Safetensors, options: OnnxOptions::default(),
    /// #     license: Some("mit".into()), encoder: Default::default(), n_parameters: 1, preprocessing: Default::default(),
    /// #     origin: "trained".into(), config: String::new(), evaluations: vec![] };
    /// assert!(card.markdown().starts_with("---\nlicense: \"mit\"\n"));
    /// ```
    pub fn markdown(&self) -> String {
        let parts = [
            self.front_matter(),
            self.model(),
            self.images(),
            self.evaluation(),
            self.loading(),
            self.training(),
        ];
        parts.join("\n")
    }

    fn front_matter(&self) -> String {
        // A JSON string is a YAML string.
        let license = Value::from(self.license.as_deref().unwrap_or("unknown"));
        format!(
            "---\nlicense: {license}\nlibrary_name: swav\npipeline_tag: image-feature-extraction\ntags:\n- swav\n- \
             self-supervised\n- resnet\n---\n"
        )
    }

    fn model(&self) -> String {
        let part = match (self.options.part, self.encoder.head) {
            (Part::Backbone, _) => "backbone alone, which gives features",
            (_, Head::None) => "backbone without a projection head: embeddings are features of unit length",
            (Part::Head, _) => {
                "backbone with projection head, which gives features and embeddings of unit length"
            }
            (Part::Prototypes, _) => "backbone, projection head and prototypes",
        };
        format!(
            "# {}\n\nA {} whose features were learnt without labels by swapped cluster assignments (SwAV, Caron et al. 2020). \
             {} Here: {part}; {} parameters.\n",
            self.file,
            describe(&self.encoder),
            self.origin,
            self.n_parameters
        )
    }

    fn images(&self) -> String {
        let Preprocessing { resize, size, mean, std } = self.preprocessing;
        let taken = if self.target == Target::Onnx && self.options.normalize.is_some() {
            "The file takes bytes (batch, height, width, 3) and normalises them itself; resizing and cropping are left."
        } else {
            "Weights know nothing of it: images have to be brought into this form."
        };
        format!(
            "## Images\n\nThe shorter side is resized to {resize} pixels (bilinear, antialiased), a square of {size} pixels is cut \
             out of the centre, and colours from 0 to 1 are normalised with mean {mean:?} and standard deviation {std:?}. Other \
             sizes work, too. {taken}\n"
        )
    }

    fn evaluation(&self) -> String {
        let mut text = "## Evaluation\n\n".to_owned();
        let mut rows = String::new();
        for evaluation in &self.evaluations {
            let name = evaluation["evaluation"].as_str().unwrap_or("evaluation");
            for result in evaluation["results"].as_array().into_iter().flatten() {
                let word = |key: &str| result[key].as_str().unwrap_or("");
                let Some(value) = result["value"].as_f64() else { continue };
                let range = match (result["low"].as_f64(), result["high"].as_f64()) {
                    (Some(low), Some(high)) => format!("{low:.4} to {high:.4}"),
                    _ => String::new(),
                };
                let n = result["n"].as_u64().map(|n| n.to_string()).unwrap_or_default();
                let _ = writeln!(
                    rows,
                    "| {name} | {} | {} | {value:.4} | {range} | {n} |",
                    word("of"),
                    word("name")
                );
            }
        }
        if rows.is_empty() {
            text += "None is on record.\n";
        } else {
            text += "| evaluation | of | what | value | interval | images |\n|---|---|---|---|---|---|\n";
            text += &rows;
        }
        text
    }

    fn loading(&self) -> String {
        let code = match self.target {
            Target::Onnx => self.onnxruntime(),
            Target::Safetensors | Target::Pth => self.pytorch(),
        };
        let rust = match self.target {
            Target::Onnx => String::new(),
            _ => format!(
                "\nIn Rust:\n\n```rust\nlet model = swav::Model::open(\"{}\")?;\nlet features = model.embed(&images)?;\n```\n",
                self.file
            ),
        };
        format!("## Use\n\n{code}{rust}")
    }

    fn onnxruntime(&self) -> String {
        let (images, shape) = match self.options.normalize {
            Some(_) => ("bytes", "(batch, height, width, 3)"),
            None => ("normalised floats", "(batch, 3, height, width)"),
        };
        format!(
            "```python\nimport onnxruntime\nsession = onnxruntime.InferenceSession(\"{}\")\nfeatures = session.run([\"features\"], \
             {{\"images\": images}})[0]  # {images}, {shape}\n```\n",
            self.file
        )
    }

    fn pytorch(&self) -> String {
        let load = match self.target {
            Target::Safetensors => {
                format!("from safetensors.torch import load_file\nstate = load_file(\"{}\")", self.file)
            }
            _ => format!("import torch\nstate = torch.load(\"{}\", weights_only=True)", self.file),
        };
        let Some(name) = name_in_torchvision(&self.encoder) else {
            return format!(
                "Neither torchvision nor timm has this architecture under a name; the tensors have the names of \
                 torchvision's ResNets:\n\n```python\n{load}\n```\n"
            );
        };
        let backbone = "state = {k: v for k, v in state.items() if not k.startswith((\"projection_head.\", \"prototypes.\"))}";
        let only = if self.options.part == Part::Backbone { String::new() } else { format!("{backbone}\n") };
        format!(
            "```python\n{load}\n{only}\n# torchvision\nimport torchvision\nmodel = torchvision.models.{name}()\nmodel.fc = \
             torch.nn.Identity()\nmodel.load_state_dict(state)\n\n# timm\nimport timm\nmodel = timm.create_model(\"{name}\", \
             num_classes=0)\nmodel.load_state_dict(state)\n\nfeatures = model.eval()(images)\n```\n"
        )
    }

    fn training(&self) -> String {
        format!("## Configuration\n\n```toml\n{}\n```\n", self.config.trim_end())
    }
}

/// The network in words.
fn describe(config: &EncoderConfig) -> String {
    let Arch::ResNet(ResNet { variant, width, stem }) = &config.arch else { return "network".to_owned() };
    let (block, layers, _) = variant.blocks();
    let name = match variant {
        Variant::Resnet18 => "ResNet-18",
        Variant::Resnet34 => "ResNet-34",
        Variant::Resnet50 => "ResNet-50",
        Variant::Resnet50w2 => "ResNet-50 of double width",
        Variant::Resnet50w4 => "ResNet-50 of fourfold width",
        Variant::Resnet50w5 => "ResNet-50 of fivefold width",
        _ => "residual network",
    };
    let stem = match stem {
        Stem::Imagenet => "the 7x7 stem",
        Stem::Cifar => "a 3x3 stem for small images",
    };
    format!("{name} ({block:?} blocks {layers:?}, {width} channels at the start, {stem})")
}

/// What torchvision and timm call the network.
fn name_in_torchvision(config: &EncoderConfig) -> Option<&'static str> {
    match &config.arch {
        Arch::ResNet(ResNet { variant, width: 64, stem: Stem::Imagenet }) => match variant {
            Variant::Resnet18 => Some("resnet18"),
            Variant::Resnet34 => Some("resnet34"),
            Variant::Resnet50 => Some("resnet50"),
            _ => None,
        },
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn card() -> Card {
        let evaluation = serde_json::json!({
            "evaluation": "knn", "step": 5,
            "results": [{"name": "accuracy", "of": "trained network", "value": 0.86, "low": 0.85, "high": 0.87, "n": 100}]
        });
        Card {
            file: "r.pth".to_owned(),
            target: Target::Pth,
            options: OnnxOptions { part: Part::Backbone, ..OnnxOptions::default() },
            license: None,
            encoder: EncoderConfig::default(),
            n_parameters: 23,
            preprocessing: Preprocessing::default(),
            origin: "Trained for 5 steps.".to_owned(),
            config: "[training]\nepochs = 3\n".to_owned(),
            evaluations: vec![evaluation, serde_json::json!("nonsense")],
        }
    }

    #[test]
    fn a_card_says_how_the_file_is_loaded() {
        let text = card().markdown();
        for words in [
            "license: \"unknown\"",
            "ResNet-50 (Bottleneck blocks [3, 4, 6, 3]",
            "torch.load(\"r.pth\", weights_only=True)",
            "torchvision.models.resnet50()",
            "| knn | trained network | accuracy | 0.8600 | 0.8500 to 0.8700 | 100 |",
            "shorter side is resized to 256",
            "epochs = 3",
        ] {
            assert!(text.contains(words), "{words} in\n{text}");
        }
        let onnx = Card { target: Target::Onnx, evaluations: Vec::new(), ..card() }.markdown();
        assert!(
            onnx.contains("onnxruntime")
                && !onnx.contains("torchvision.models")
                && onnx.contains("None is on record")
        );
        let own = EncoderConfig {
            arch: ResNet::new(Variant::Resnet50).with_width(8).into(),
            ..EncoderConfig::default()
        };
        assert!(Card { encoder: own, ..card() }.markdown().contains("Neither torchvision nor timm"));
    }
}
