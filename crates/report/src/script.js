"use strict";
(() => {
  const tip = document.getElementById("tip");
  const place = (x, y) => {
    tip.hidden = false;
    const box = tip.getBoundingClientRect();
    const left = x + 16 + box.width > innerWidth ? x - 16 - box.width : x + 16;
    tip.style.left = Math.max(4, left) + "px";
    tip.style.top = Math.max(4, Math.min(y + 12, innerHeight - box.height - 4)) + "px";
  };
  const hide = () => { tip.hidden = true; };
  addEventListener("scroll", hide, { passive: true });
  const line = (text, colour) => {
    const row = document.createElement("div");
    if (colour) {
      const mark = document.createElement("i");
      mark.style.background = colour;
      row.append(mark);
    }
    row.append(text);
    return row;
  };
  const short = value => {
    const size = Math.abs(value);
    if (size !== 0 && (size < 1e-3 || size >= 1e6)) return value.toExponential(2);
    return String(Number(value.toPrecision(4)));
  };

  document.getElementById("theme").addEventListener("click", () => {
    const root = document.documentElement;
    const dark = root.classList.contains("dark") ||
      (!root.classList.contains("light") && matchMedia("(prefers-color-scheme: dark)").matches);
    root.classList.remove("dark", "light");
    root.classList.add(dark ? "light" : "dark");
    document.dispatchEvent(new Event("themed"));
  });

  for (const svg of document.querySelectorAll("svg[data-chart]")) {
    const chart = JSON.parse(svg.dataset.chart);
    const cursor = svg.querySelector(".cursor");
    const [left, right, top, bottom, width] = chart.frame;
    const show = event => {
      const box = svg.getBoundingClientRect();
      const at = (event.clientX - box.left) * width / box.width;
      const share = Math.min(1, Math.max(0, (at - left) / (right - left)));
      const x = chart.x[0] + share * (chart.x[1] - chart.x[0]);
      let step = null;
      const rows = chart.points.map((points, index) => {
        if (!points.length) return null;
        let low = 0, high = points.length - 1;
        while (low < high) {
          const middle = (low + high) >> 1;
          if (points[middle][0] < x) low = middle + 1; else high = middle;
        }
        if (low > 0 && x - points[low - 1][0] < points[low][0] - x) low -= 1;
        if (step === null || Math.abs(points[low][0] - x) < Math.abs(step - x)) step = points[low][0];
        return line(chart.names[index] + " " + short(points[low][1]), "var(--c" + index + ")");
      });
      if (step === null) return;
      const seen = left + (step - chart.x[0]) / (chart.x[1] - chart.x[0]) * (right - left);
      cursor.removeAttribute("hidden");
      for (const [name, value] of [["x1", seen], ["x2", seen], ["y1", top], ["y2", bottom]]) cursor.setAttribute(name, value);
      tip.replaceChildren(line("step " + Math.round(step)), ...rows.filter(Boolean));
      place(event.clientX, event.clientY);
    };
    svg.addEventListener("pointermove", show);
    svg.addEventListener("pointerdown", show);
    svg.addEventListener("pointerleave", event => { if (event.pointerType === "touch") return; cursor.setAttribute("hidden", ""); hide(); });
  }

  const canvas = document.getElementById("map-canvas");
  if (!canvas) return;
  const data = JSON.parse(document.getElementById("map-data").textContent);
  const sheets = [...document.querySelectorAll(".map-sheet")];
  const projections = data.projections.map(projection => {
    const bytes = Uint8Array.from(atob(projection.points), c => c.charCodeAt(0));
    return new Uint16Array(bytes.buffer);
  });
  const context = canvas.getContext("2d");
  const choose = id => document.getElementById(id);
  const state = { projection: 0, colour: choose("colour").value, chosen: null, zoom: 1, x: .5, y: .5, near: -1 };
  const n = data.names.length;
  const hue = (index, count) => count <= 12 ? index * 360 / count + 12 : index * 137.508 % 360;
  const paint = (index, count) => index < 0 ? "hsl(0 0% 55%)" : "hsl(" + hue(index, count) + " 68% " + (index % 2 ? 47 : 58) + "%)";
  const groups = { label: data.labels, cluster: data.clusters };
  const count = { label: data.classes.length, cluster: 1 + data.clusters.reduce((a, b) => Math.max(a, b), 0) };
  const groupName = (kind, index) => kind === "cluster" ? "prototype " + index : index < 0 ? "no label" : data.classes[index] || "class " + index;
  const scale = () => Math.min(canvas.clientWidth, canvas.clientHeight) * .94 * state.zoom;
  const where = point => {
    const points = projections[state.projection], size = scale();
    return [
      canvas.clientWidth / 2 + (points[2 * point] / 65535 - state.x) * size,
      canvas.clientHeight / 2 - (points[2 * point + 1] / 65535 - state.y) * size,
    ];
  };
  const dot = (point, radius) => {
    const [x, y] = where(point);
    if (x < -9 || y < -9 || x > canvas.clientWidth + 9 || y > canvas.clientHeight + 9) return;
    context.beginPath();
    context.arc(x, y, radius, 0, 7);
    context.fill();
  };
  const thumbnail = (target, point, x, y, width) => {
    const side = data.side, row = Math.floor(point / data.columns), sheet = sheets[Math.floor(row / data.rows)];
    if (!sheet || !sheet.complete || !sheet.naturalWidth) return false;
    target.drawImage(sheet, point % data.columns * side, row % data.rows * side, side, side, x, y, width, width);
    return true;
  };
  // Pictures of some points, at most one in each field of a grid that moves with the map, so that none covers another.
  const pictures = (of, total) => {
    const field = 56, side = 30, seen = new Set(), size = scale();
    const origin = [canvas.clientWidth / 2 - state.x * size, canvas.clientHeight / 2 + state.y * size];
    context.lineWidth = 2;
    for (let at = 0; at < n; at += 1) {
      if (state.chosen !== null && of[at] !== state.chosen) continue;
      const [x, y] = where(at);
      if (x < -side || y < -side || x > canvas.clientWidth + side || y > canvas.clientHeight + side) continue;
      const [u, v] = [(x - origin[0]) / field, (y - origin[1]) / field];
      const key = Math.floor(u) + ":" + Math.floor(v);
      const off = Math.max(Math.abs(u - Math.floor(u) - .5), Math.abs(v - Math.floor(v) - .5));
      if (off > .22 || seen.has(key) || !thumbnail(context, at, x - side / 2, y - side / 2, side)) continue;
      seen.add(key);
      context.strokeStyle = paint(of[at], total);
      context.strokeRect(x - side / 2, y - side / 2, side, side);
    }
  };
  let waiting = false;
  const draw = () => {
    waiting = false;
    const ratio = devicePixelRatio || 1;
    const [width, height] = [canvas.clientWidth, canvas.clientHeight];
    if (canvas.width !== Math.round(width * ratio) || canvas.height !== Math.round(height * ratio)) {
      canvas.width = Math.round(width * ratio);
      canvas.height = Math.round(height * ratio);
    }
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    context.clearRect(0, 0, width, height);
    const kind = state.colour, of = groups[kind], total = count[kind];
    const radius = Math.min(6, (n > 2000 ? 2.2 : n > 500 ? 3 : 4) * Math.sqrt(state.zoom));
    context.globalAlpha = .85;
    for (let point = 0; point < n; point += 1) {
      if (state.chosen !== null && of[point] !== state.chosen) continue;
      context.fillStyle = paint(of[point], total);
      dot(point, radius);
    }
    if (state.chosen !== null) {
      context.globalAlpha = .12;
      context.fillStyle = getComputedStyle(canvas).color;
      for (let point = 0; point < n; point += 1) if (of[point] !== state.chosen) dot(point, radius * .8);
    }
    context.globalAlpha = 1;
    if (choose("pictures").checked) pictures(of, total);
    if (state.near >= 0) {
      const [x, y] = where(state.near);
      context.strokeStyle = getComputedStyle(canvas).color;
      context.lineWidth = 2;
      context.beginPath();
      context.arc(x, y, radius + 4, 0, 7);
      context.stroke();
    }
  };
  const redraw = () => { if (!waiting) { waiting = true; requestAnimationFrame(draw); } };
  const legend = () => {
    const kind = state.colour, of = groups[kind], sizes = new Map();
    for (const group of of) sizes.set(group, (sizes.get(group) || 0) + 1);
    const shown = [...sizes].sort((a, b) => kind === "label" ? a[0] - b[0] : b[1] - a[1]).slice(0, 24);
    choose("map-legend").replaceChildren(...shown.map(([group, size]) => {
      const item = document.createElement("span"), mark = document.createElement("i");
      mark.style.background = paint(group, count[kind]);
      item.append(mark, groupName(kind, group) + " (" + size + ")");
      item.classList.toggle("chosen", state.chosen === group);
      item.addEventListener("click", () => { state.chosen = state.chosen === group ? null : group; legend(); redraw(); });
      return item;
    }));
  };
  const picture = point => {
    const side = data.side, shown = document.createElement("canvas");
    shown.width = shown.height = side;
    shown.style.width = shown.style.height = Math.max(96, side) + "px";
    thumbnail(shown.getContext("2d"), point, 0, 0, side);
    return shown;
  };
  const point = event => {
    const box = canvas.getBoundingClientRect(), x = event.clientX - box.left, y = event.clientY - box.top;
    let near = -1, least = event.pointerType === "touch" ? 900 : 300;
    const of = groups[state.colour];
    for (let at = 0; at < n; at += 1) {
      if (state.chosen !== null && of[at] !== state.chosen) continue;
      const [px, py] = where(at), far = (px - x) * (px - x) + (py - y) * (py - y);
      if (far < least) { least = far; near = at; }
    }
    if (near !== state.near) { state.near = near; redraw(); }
    if (near < 0) { hide(); return; }
    const rows = [picture(near), line(data.names[near])];
    if (data.labels.length) rows.push(line(groupName("label", data.labels[near]), paint(data.labels[near], count.label)));
    rows.push(line(groupName("cluster", data.clusters[near]), paint(data.clusters[near], count.cluster)));
    tip.replaceChildren(...rows);
    place(event.clientX, event.clientY);
  };
  const zoomAt = (factor, cx, cy) => {
    const box = canvas.getBoundingClientRect(), size = scale();
    const dx = (cx - box.left - canvas.clientWidth / 2) / size, dy = (canvas.clientHeight / 2 - cy + box.top) / size;
    const zoom = Math.min(40, Math.max(1, state.zoom * factor)), kept = state.zoom / zoom;
    state.x += dx * (1 - kept);
    state.y += dy * (1 - kept);
    state.zoom = zoom;
    redraw();
  };
  const fingers = new Map();
  let apart = 0;
  const spread = () => {
    const [a, b] = [...fingers.values()];
    return Math.hypot(a.clientX - b.clientX, a.clientY - b.clientY);
  };
  canvas.addEventListener("pointerdown", event => {
    fingers.set(event.pointerId, event);
    canvas.setPointerCapture(event.pointerId);
    if (fingers.size === 2) apart = spread(); else point(event);
  });
  canvas.addEventListener("pointermove", event => {
    const before = fingers.get(event.pointerId);
    if (before) fingers.set(event.pointerId, event);
    if (fingers.size === 2) {
      const now = spread(), [a, b] = [...fingers.values()];
      zoomAt(now / (apart || now), (a.clientX + b.clientX) / 2, (a.clientY + b.clientY) / 2);
      apart = now;
    } else if (before) {
      state.x -= (event.clientX - before.clientX) / scale();
      state.y += (event.clientY - before.clientY) / scale();
      hide();
      redraw();
    } else {
      point(event);
    }
  });
  const lift = event => { fingers.delete(event.pointerId); };
  canvas.addEventListener("pointerup", lift);
  canvas.addEventListener("pointercancel", lift);
  canvas.addEventListener("pointerleave", event => { if (event.pointerType === "touch") return; state.near = -1; hide(); redraw(); });
  canvas.addEventListener("wheel", event => {
    event.preventDefault();
    zoomAt(Math.exp(-event.deltaY / 400), event.clientX, event.clientY);
  }, { passive: false });
  choose("whole").addEventListener("click", () => { Object.assign(state, { zoom: 1, x: .5, y: .5, chosen: null }); legend(); redraw(); });
  choose("colour").addEventListener("change", event => { state.colour = event.target.value; state.chosen = null; legend(); redraw(); });
  if (choose("projection")) choose("projection").addEventListener("change", event => { state.projection = Number(event.target.value); redraw(); });
  choose("pictures").addEventListener("change", redraw);
  for (const sheet of sheets) sheet.addEventListener("load", redraw);
  document.addEventListener("themed", redraw);
  new ResizeObserver(redraw).observe(canvas);
  legend();
  redraw();
})();
