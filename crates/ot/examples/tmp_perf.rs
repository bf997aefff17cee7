use ndarray::*;
use rand::*;
fn main() {
    let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(0);
    for b in [64usize, 256, 4096] {
        let s = Array2::<f32>::from_shape_simple_fn((b, 3000), || rng.random_range(-0.4..0.4));
        let mut o = s.clone();
        let mut c = swav_ot::Codes::new(0.05, 3).unwrap();
        c.assign_into(s.view(), o.view_mut()).unwrap();
        let mut t = vec![];
        for _ in 0..15 {
            let i = std::time::Instant::now();
            c.assign_into(s.view(), o.view_mut()).unwrap();
            t.push(i.elapsed().as_secs_f64() * 1e3);
        }
        t.sort_by(f64::total_cmp);
        println!("{b} min {:.3} med {:.3}", t[0], t[7]);
    }
}
