// The page reads and scrolls without this. It starts films, unless the reader asked for less motion, and says of boxes
// that are wider than the screen that they scroll.
const lessMotion = matchMedia("(prefers-reduced-motion: reduce)");
for (const film of document.querySelectorAll("video")) {
  const follow = () => lessMotion.matches ? film.pause() : film.play().catch(() => {});
  lessMotion.addEventListener("change", follow);
  follow();
}
for (const box of document.querySelectorAll(".scroll")) {
  const mark = () => box.classList.toggle("scrolls", box.scrollWidth > box.clientWidth + 1);
  new ResizeObserver(mark).observe(box);
  mark();
}
