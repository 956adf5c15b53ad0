// Sliders of the course on a page without a kernel: each position has its picture and its sentence (frames.py).
document.addEventListener("DOMContentLoaded", () => {
  for (const root of document.querySelectorAll(".frames")) {
    const about = JSON.parse(root.querySelector("script").textContent);
    const inputs = [...root.querySelectorAll("input")], [first, over] = root.querySelectorAll("img");
    const says = root.querySelector(".frames-says"), alone = inputs.length > 2;
    const show = moved => {
      for (const one of inputs) {
        if (alone && moved && one !== moved) one.value = about.start[one.name];
        const value = about.values[one.name][one.value];
        one.nextElementSibling.textContent = one.ariaValueText = String(value);
      }
      const [name, words] = about.frames[inputs.map(one => one.value).join(",")];
      over.hidden = !name;
      if (name) over.src = `${about.address}/${name}`;
      first.alt = says.textContent = words;
    };
    const fetchAll = () => {   // once a reader comes near, so that a move finds its picture here
      for (const name of new Set(Object.values(about.frames).map(frame => frame[0]))) {
        if (name) new Image().src = `${about.address}/${name}`;
      }
    };
    for (const event of ["pointerenter", "focusin"]) root.addEventListener(event, fetchAll, {once: true});
    inputs.forEach(one => one.addEventListener("input", () => show(one)));
    root.querySelector(".frames-rows").hidden = false;
    show();
  }
});
