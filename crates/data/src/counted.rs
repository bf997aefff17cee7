//! Numbers of things, for people.

/// A number and what it counts, in the plural unless it is one; for [`Dataset::describe`](crate::Dataset::describe).
///
/// ```
/// use swav_data::counted;
/// assert_eq!([0, 1, 2].map(|count| counted(count, "image")), ["0 images", "1 image", "2 images"]);
/// assert_eq!([1, 12].map(|count| counted(count, "class")), ["1 class", "12 classes"]);
/// assert_eq!(counted(3, "batch"), "3 batches");
/// assert_eq!(counted(3, "epoch"), "3 epochs");
/// ```
pub fn counted(count: usize, thing: &str) -> String {
    let ending = match count {
        1 => "",
        _ if thing.ends_with('s') || thing.ends_with("tch") => "es",
        _ => "s",
    };
    format!("{count} {thing}{ending}")
}
