// The page works without this script. It starts films, unless the reader prefers reduced motion, and marks boxes that
// are wider than the screen as scrollable; only those are reached by the tab key.
const lessMotion = matchMedia("(prefers-reduced-motion: reduce)");
for (const film of document.querySelectorAll("video")) {
  if (!lessMotion.matches) film.play().catch(() => {});
  lessMotion.addEventListener("change", () => { if (lessMotion.matches) film.pause(); });
}
for (const box of document.querySelectorAll(".scroll")) {
  const mark = () => {
    const scrolls = box.scrollWidth > box.clientWidth + 1;
    box.classList.toggle("scrolls", scrolls);
    if (scrolls) box.tabIndex = 0; else box.removeAttribute("tabindex");
  };
  new ResizeObserver(mark).observe(box);
  mark();
}
