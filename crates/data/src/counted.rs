//! Numbers of things, for people.

/// A number and what it counts, in the plural unless it is one; for [`Dataset::describe`](crate::Dataset::describe).
///
/// ```
/// use swav_data::counted;
/// assert_eq!([0, 1, 2].map(|count| counted(count, "image")), ["0 images", "1 image", "2 images"]);
/// assert_eq!([1, 12].map(|count| counted(count, "class")), ["1 class", "12 classes"]);
/// ```
pub fn counted(count: usize, thing: &str) -> String {
    let ending = match (count, thing.ends_with('s')) {
        (1, _) => "",
        (_, false) => "s",
        (_, true) => "es",
    };
    format!("{count} {thing}{ending}")
}
