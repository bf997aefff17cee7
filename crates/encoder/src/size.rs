//! How large a network is, from its specification alone: what a program asks before it allocates one.

use crate::EncoderSpec;
use crate::layers::{Layers, Unit};

impl EncoderSpec {
    /// How many numbers are trained.
    ///
    /// ```
    /// use swav_encoder::EncoderConfig;
    /// // ResNet-50 with the reference's head: 2048 -> 2048 -> 128.
    /// assert_eq!(EncoderConfig::default().check()?.n_parameters(), 27_970_752);
    /// # Ok::<(), swav_encoder::EncoderError>(())
    /// ```
    pub fn n_parameters(&self) -> u64 {
        let layers = Layers::new(self);
        let values = |shape: &[usize]| shape.iter().map(|&extent| extent as u64).product::<u64>();
        layers.parameters.iter().map(|info| values(&info.shape)).sum()
    }

    /// How many numbers the outputs of all convolutions have for one image of `size` x `size` pixels: about what a pass in
    /// training keeps for backward.
    pub fn n_activations(&self, size: usize) -> u64 {
        let mut shape = [1, size, size, 0];
        let mut total = 0;
        for layer in &Layers::new(self).backbone {
            let convs = layer.unit.convs();
            let n_main = match &layer.unit {
                Unit::Block { n_convs, .. } => *n_convs,
                _ => convs.len(),
            };
            let (input, mut last) = (shape, shape);
            for (index, conv) in convs.iter().enumerate() {
                // A block's shortcut comes last, and reads the block's input.
                let from = if index < n_main { last } else { input };
                let out = conv.output_shape(from);
                total += out.iter().map(|&extent| extent as u64).product::<u64>();
                last = if index < n_main { out } else { last };
            }
            shape = last;
            if let Unit::Stem { pool: true, .. } = layer.unit {
                shape = [1, shape[1].div_ceil(2), shape[2].div_ceil(2), shape[3]];
            }
        }
        total
    }
}

#[cfg(test)]
mod tests {
    use crate::{BlockKind, EncoderConfig, ResNet, Stem, Variant};

    #[test]
    fn sizes_are_those_of_the_network() {
        let resnet = ResNet::custom(BlockKind::Basic, [1, 1]).with_width(8).with_stem(Stem::Cifar);
        let spec = EncoderConfig { arch: resnet.into(), ..EncoderConfig::default() }.check().unwrap();
        let network = crate::build_cpu(&spec, 1).unwrap();
        let counted: usize =
            network.parameters().iter().map(|(_, shape)| shape.iter().product::<usize>()).sum();
        assert_eq!(spec.n_parameters(), counted as u64);
        // Stem and first block: three maps of 8 channels at 10 x 10; second block: two of 16 at 5 x 5 and the shortcut's.
        assert_eq!(spec.n_activations(10), 3 * 800 + 3 * 400);
    }

    #[test]
    fn a_resnet_50_keeps_what_the_literature_says() {
        let spec = EncoderConfig { arch: ResNet::new(Variant::Resnet50).into(), ..EncoderConfig::default() };
        // 11.1 million outputs of convolutions at 224 pixels.
        let n = spec.check().unwrap().n_activations(224);
        assert!((10_500_000..11_700_000).contains(&n), "{n}");
    }
}
